"""Networks of users become steps that compute the same, or are refused by name."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from own_networks import Inverted, Residual, Tiny, conv
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from oncequant.export.lower import lower, network_input
from oncequant.export.onnx_runtime import run_onnx, session
from oncequant.export.onnx_writer import write_onnx
from oncequant.export.simulate import run_integer
from oncequant.measure import calibrated_subnet, initialise_quantizers
from oncequant.models import build_network, config_from_json, config_to_json, space_of
from oncequant.models.own import from_text
from oncequant.models.trace import TraceError, blocks_of, float_network, own_network

SIZE = 16


class Of(nn.Module):
    """A first convolution, `function(self, x)` and a classifier. Other modules are attributes."""

    def __init__(self, function, width=8, size=SIZE, **modules):
        super().__init__()
        self.first = conv(3, 8, act=nn.ReLU)
        for name, module in modules.items():
            self.add_module(name, module)
        self.function, self.last = function, nn.Linear(width * size * size, 5)

    def forward(self, x):
        return self.last(self.function(self, self.first(x)).flatten(1))


def traced(module, size=SIZE, channels=3):
    """The traced network, whose statistics and norms are not neutral."""
    torch.manual_seed(0)
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.dim() == 1:
            torch.nn.init.uniform_(tensor.data, 0.3, 1.5)
    found = own_network(module, torch.zeros(1, channels, size, size))
    images = torch.randn(4, channels, size, size)
    with torch.no_grad():
        expected = module.eval()(images)
        net = float_network(found)
        assert_close(net(images, net.space.largest()), expected, atol=1e-4, rtol=1e-4)
    return found


def steps_of(module, **options):
    return from_text(traced(module, **options).config.network)[2]


def shuffle(x, groups):
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


def pooled(*arguments, **options):
    return lambda net, x: F.max_pool2d(x, *arguments, **options)


SUPPORTED = {
    "relu6": Of(lambda net, x: F.relu6(x)),
    "clamp": Of(lambda net, x: x.clamp(0, 6)),
    "hardswish": Of(lambda net, x: F.hardswish(x)),
    "hardsigmoid": Of(lambda net, x: F.hardsigmoid(x)),
    "silu": Of(lambda net, x: net.act(x), act=nn.SiLU(inplace=True)),
    "sigmoid": Of(lambda net, x: x.sigmoid()),
    "sums in place": Of(lambda net, x: net.one(x).add_(x).relu_() + x, one=conv(8, 8)),
    "maxpool": Of(pooled(2), size=8),
    "maxpool 3": Of(pooled(3, 2, 1), size=8),
    "maxpool ceil": Of(pooled(3, 2, ceil_mode=True), size=8),
    "avgpool": Of(lambda net, x: F.avg_pool2d(x, 2), size=8),
    "avgpool of all": Of(lambda net, x: F.avg_pool2d(x, SIZE), size=1),
    "avgpool with zeros": Of(lambda net, x: F.avg_pool2d(x, 3, 1, 1)),
    "adaptive": Of(lambda net, x: F.adaptive_avg_pool2d(x, 4), size=4),
    "adaptive, the same": Of(lambda net, x: F.adaptive_avg_pool2d(x, SIZE)),
    "global": Of(lambda net, x: x.mean((-1, -2), keepdim=True), size=1),
    "concat": Of(lambda net, x: torch.cat([x, net.one(x), x], 1), width=20, one=conv(8, 4)),
    "grouped": Of(lambda net, x: net.one(x), one=conv(8, 8, groups=4)),
    "depthwise": Of(lambda net, x: net.one(x), one=conv(8, 8, groups=8)),
    "depthwise, twice as wide": Of(lambda net, x: net.one(x), width=16, one=conv(8, 16, groups=8)),
    "dilated": Of(lambda net, x: net.one(x), one=nn.Conv2d(8, 8, 3, padding=2, dilation=2)),
    "even kernel": Of(lambda net, x: net.one(x), size=8, one=nn.Conv2d(8, 8, 2, stride=2)),
    "same padding": Of(lambda net, x: net.one(x), one=nn.Conv2d(8, 8, 5, padding="same")),
    "no padding": Of(lambda net, x: net.one(x), size=14, one=nn.Conv2d(8, 8, 3)),
    "bias and norm": Of(lambda net, x: net.norm(net.one(x)), one=nn.Conv2d(8, 8, 1), norm=nn.BatchNorm2d(8, eps=1e-3)),
    "norm alone": Of(lambda net, x: F.relu(net.norm(torch.cat([x, x], 1))), width=16, norm=nn.BatchNorm2d(16)),
    "norm of a sum": Of(lambda net, x: net.norm(net.one(x) + x), one=conv(8, 8), norm=nn.BatchNorm2d(8)),
    "a conv that two read": Of(
        lambda net, x: net.norm(y := net.one(x)) + y, one=nn.Conv2d(8, 8, 1), norm=nn.BatchNorm2d(8)
    ),
    "pad": Of(lambda net, x: net.one(F.pad(x, (0, 1, 1, 0))), one=nn.Conv2d(8, 8, 2)),
    "zero pad": Of(lambda net, x: net.pad(x), size=18, pad=nn.ZeroPad2d(1)),
    "chunk": Of(lambda net, x: torch.cat(x.chunk(2, dim=1)[::-1], 1)),
    "split": Of(lambda net, x: torch.cat([y.relu() for y in x.split([2, 6], 1)], 1)),
    "slice": Of(lambda net, x: x[:, 2:5], width=3),
    "shuffle": Of(lambda net, x: shuffle(x, 2)),
    "shuffle module": Of(lambda net, x: net.act(x), act=nn.ChannelShuffle(4)),
    "dropout": Of(lambda net, x: net.drop(x), drop=nn.Dropout(0.3)),
    "squeeze and excite": Of(lambda net, x: net.se(x), se=Inverted(8, nn.Hardswish)),
    "squeeze by linear layers": Of(
        lambda net, x: x * net.b(F.relu(net.a(x.mean((2, 3))))).sigmoid()[:, :, None, None],
        a=nn.Linear(8, 4),
        b=nn.Linear(4, 8),
    ),
    "linear layers": Of(
        lambda net, x: net.a(x.flatten(1)).relu()[:, :, None, None], size=1, a=nn.Linear(8 * SIZE**2, 8)
    ),
    "product of maps": Of(lambda net, x: x * net.one(x).sigmoid(), one=conv(8, 8, act=None)),
    "residual": Of(lambda net, x: net.one(x), one=nn.Sequential(Residual(8), Residual(8))),
}


@pytest.mark.parametrize("name", SUPPORTED)
def test_what_is_supported_computes_the_same(name):
    traced(SUPPORTED[name])


class WithoutLinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = conv(3, 8), nn.Conv2d(8, 5, 1)

    def forward(self, x):
        return F.adaptive_avg_pool2d(self.conv2(self.conv1(x)).relu(), 1).flatten(1)


@pytest.mark.parametrize(
    "module",
    [
        Tiny(3),
        WithoutLinear(),
        nn.Sequential(nn.Conv2d(3, 5, SIZE), nn.Flatten()),
        nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 4, bias=False)),
        nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 4), nn.ReLU(), nn.Linear(4, 5), nn.BatchNorm1d(5)),
        nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 4), nn.ReLU(), nn.BatchNorm1d(4)),
        nn.Sequential(nn.Conv2d(3, 4, 8, dilation=2, padding=0), nn.AvgPool2d(2), nn.Flatten()),
        nn.Sequential(conv(3, 8, stride=2), nn.Conv2d(8, 5, 8, padding=1, stride=4), nn.AvgPool2d(1), nn.Flatten()),
    ],
)
def test_networks_of_other_ends_compute_the_same(module):
    traced(module)


@pytest.mark.parametrize(
    "module",
    [
        SUPPORTED["linear layers"],
        SUPPORTED["norm alone"],
        SUPPORTED["squeeze by linear layers"],
        WithoutLinear(),
        nn.Sequential(nn.Conv2d(3, 5, SIZE), nn.Flatten()),
        nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 4), nn.ReLU(), nn.BatchNorm1d(4)),
    ],
)
@pytest.mark.parametrize("quantizer", ["lsq", "batchquant"])
def test_files_of_unusual_networks_are_the_simulator_bit_for_bit(module, quantizer, tmp_path):
    found = own_network(module, torch.zeros(1, 3, SIZE, SIZE))
    bits = dict(weight_bits=(2, 3, 4), act_bits=(2, 4), steps_per_bits=True, act_quantizer=quantizer)
    net, images = build_network(replace(found.config, **bits)), torch.randn(64, 3, SIZE, SIZE)
    net.load_state_dict(found.weights, strict=False)
    initialise_quantizers(net, images)
    arch, calibration = net.space.sample(np.random.default_rng(1)), [(images, None)]
    subnet, classes = calibrated_subnet(net, arch, calibration), tuple(map(str, range(net.config.num_classes)))
    graph = lower(subnet, arch, (0.5,) * 3, (0.25,) * 3, classes, SIZE, calibration)
    write_onnx(graph, tmp_path / "model.onnx")
    pixels = network_input(graph, torch.randn(20, 3, SIZE, SIZE))
    with torch.no_grad():
        assert torch.equal(run_onnx(session(tmp_path / "model.onnx"), pixels), run_integer(graph, pixels))


def test_a_network_keeps_the_names_of_its_modules():
    steps = {step.name: step for step in steps_of(Tiny(3))}
    assert [name for name, step in steps.items() if step.op == "layer"][:4] == [
        "stem.0", "blocks.0.expand.0", "blocks.0.deep.0", "blocks.0.reduce",
    ]  # fmt: skip
    assert steps["blocks.0.deep.0"].groups == 16 and steps["blocks.0.deep.0"].norm == 1e-5
    assert steps["net.classifier"].signed is False and not steps["blocks.1.conv1.0"].padding != 1
    names = {step.name for step in steps.values() if step.op == "layer"}
    assert all(block.startswith("block") for block in (steps[n].block for n in names) if block)
    assert steps["stem.0"].block == steps["net.classifier"].block == ""
    assert len({step.block for step in steps.values()}) > 3


def test_inputs_below_zero_get_signed_grids():
    module = Of(lambda net, x: net.b(net.a(x)) + x, a=conv(8, 8, act=None), b=conv(8, 8))
    steps = {step.name: step for step in steps_of(module)}
    signed = {name: step.signed for name, step in steps.items() if step.op == "layer"}
    assert signed == {"first.0": True, "a.0": False, "b.0": True, "net.last": False}


def test_a_configuration_goes_through_json_and_describes_the_same():
    found = traced(Tiny(3))
    again = config_from_json(config_to_json(found.config))
    assert again == found.config and hash(again) == hash(found.config)
    space = space_of(again)
    assert space.layers(space.largest()).layers == space_of(found.config).layers(space.largest()).layers
    with pytest.raises(ValueError, match="network: not the description of a network"):
        config_from_json({**config_to_json(found.config), "network": "{"})
    for text in ("[]", '{"channels": 3, "size": 8, "steps": [{"nam": 1}]}', '{"channels": 3, "size": 8, "steps": []}'):
        with pytest.raises(ValueError, match="network: not the description"):
            config_from_json({**config_to_json(found.config), "network": text})


def test_blocks_are_cut_where_one_map_is_left():
    steps = blocks_of(steps_of(Tiny(3)))
    made = {step.name: step.block for step in steps}
    for step in steps:
        if step.op in ("add", "multiply"):
            assert len({made[name] for name in step.inputs} | {step.block}) <= 2
    assert [block for block in made.values() if block] == sorted(block for block in made.values() if block)


def test_the_module_is_left_as_it_was():
    module = Tiny(3).train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    own_network(module, torch.zeros(1, 3, SIZE, SIZE))
    assert module.training and all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_other_sizes_are_described_where_they_fit():
    config = traced(Tiny(3)).config
    space = space_of(replace(config, resolutions=(12, 16, 24)))
    assert space.layers(space.largest())["stem.0"].in_size == 24
    fixed = traced(SUPPORTED["relu6"]).config
    with pytest.raises(
        ValueError, match="resolutions 24: the last layer would make more than one pixel; the network was"
    ):
        replace(fixed, resolutions=(16, 24))
    with pytest.raises(ValueError, match="resolutions 8: net.last would make a map of"):
        replace(fixed, resolutions=(8,))
    with pytest.raises(ValueError, match="takes images of 3 channels, these have 1"):
        replace(config, image_channels=1)
    with pytest.raises(ValueError, match="width: a network of your own has its own"):
        replace(config, width=0.5)
    net = build_network(replace(config, num_classes=7))
    assert net(torch.randn(2, 3, SIZE, SIZE), net.space.largest()).shape == (2, 7)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.last = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 4)

    def forward(self, x):
        return self.last(self.one(self.one(x)).mean((2, 3)))


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(3, 4)

    def forward(self, x):
        return self.last((x if x.sum() > 0 else -x).mean((2, 3)))


class Several(Tiny):
    def forward(self, x):
        return super().forward(x), x


class Noisy(Tiny):
    def forward(self, x):
        return super().forward(x + torch.rand(()).item())


REFUSED = {
    "gelu": (
        Of(lambda net, x: net.act(x), act=nn.GELU()),
        "^act: gelu is not an operation that can be quantized; use ReLU",
    ),
    "leaky": (Of(lambda net, x: F.leaky_relu(x)), "^the network itself: leaky_relu .*; use ReLU or Hardswish"),
    "layer norm": (Of(lambda net, x: net.n(x), n=nn.LayerNorm(SIZE)), "^n: layer_norm .*use BatchNorm2d"),
    "group norm": (Of(lambda net, x: net.n(x), n=nn.GroupNorm(2, 8)), "^n: group_norm .*use BatchNorm2d"),
    "softmax": (nn.Sequential(Tiny(3), nn.Softmax(1)), "^1: softmax .*training and answers need the logits"),
    "hardtanh": (Of(lambda net, x: F.hardtanh(x)), "hardtanh between -1.0 and 1.0 .*use ReLU6"),
    "kernel": (
        Of(lambda net, x: net.c(x), c=nn.Conv2d(8, 8, (1, 3), padding=(0, 1))),
        r"^c: conv2d has the kernel \(1, 3\)",
    ),
    "stride": (
        Of(lambda net, x: net.c(x), width=4, c=nn.Conv2d(8, 8, 1, stride=(1, 2))),
        r"^c: conv2d has the stride \(1, 2\)",
    ),
    "twice": (Twice(), "^one: conv2d uses one.weight a second time"),
    "computed weights": (
        Of(lambda net, x: F.conv2d(x, net.first[0].weight.repeat(1, 3, 1, 1)[:, :8], padding=1)),
        "conv2d|slice|repeat",
    ),
    "number": (Of(lambda net, x: x + 1), "add of a number or a parameter; use a Conv2d or BatchNorm2d"),
    "factor": (Of(lambda net, x: x * 0.5), "mul by a number or a parameter; use a BatchNorm2d"),
    "transposed": (
        Of(lambda net, x: net.c(x), c=nn.ConvTranspose2d(8, 8, 1)),
        "^c: conv_transpose2d .*networks that classify",
    ),
    "upsampling": (
        Of(lambda net, x: F.interpolate(x, scale_factor=2.0), size=2 * SIZE),
        "upsample_nearest2d .*networks that classify",
    ),
    "max of all": (Of(lambda net, x: F.adaptive_max_pool2d(x, 1), size=1), "adaptive_max_pool2d .*AdaptiveAvgPool2d"),
    "adaptive": (
        Of(lambda net, x: F.adaptive_avg_pool2d(x, 3), size=3),
        r"makes \(3, 3\) of 16 x 16; use AdaptiveAvgPool2d\(1\)",
    ),
    "avgpool": (
        Of(lambda net, x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)),
        "count_include_pad=True or padding 0",
    ),
    "reflected": (
        Of(lambda net, x: F.pad(x, (1, 1, 1, 1), "reflect"), size=18),
        "with something else than zeros; use ZeroPad2d",
    ),
    "one side": (
        Of(lambda net, x: F.pad(x, (1, 0, 0, 0)).mean((2, 3)), size=1),
        "add as many pixels to the height as to the width",
    ),
    "mean of channels": (
        Of(lambda net, x: x * x.mean(1, keepdim=True)),
        "mean over something else than height and width",
    ),
    "rows": (Of(lambda net, x: x[:, :, ::2, ::2], size=8), "slice of something else than channels"),
    "dropout2d": (Of(lambda net, x: net.d(x), d=nn.Dropout2d(0.5)), "^d: feature_dropout .*use Dropout"),
    "without statistics": (
        Of(lambda net, x: net.n(x), n=nn.BatchNorm2d(8, track_running_stats=False)),
        "^n: .*track_running_stats=True",
    ),
    "branching": (Branching(), "torch.export cannot trace the network"),
    "several": (Several(3), "does not return logits .N, classes. alone"),
    "a map": (conv(3, 8), "does not return logits"),
    "a norm": (nn.Sequential(nn.BatchNorm2d(3), nn.AvgPool2d(SIZE), nn.Flatten()), "the network has no layer"),
    "nothing": (nn.Flatten(), "does not return logits|has no layer"),
    "noise": (Noisy(3), "torch.export cannot trace|other logits|add of a number|rand is not"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_is_refused_by_name(name):
    module, text = REFUSED[name]
    with pytest.raises(TraceError, match=text):
        own_network(module, torch.zeros(1, 3, SIZE, SIZE))


def test_what_is_no_network_or_no_example_is_refused():
    for module, example, text in (
        (lambda x: x, torch.zeros(1, 3, 8, 8), "a network is a torch.nn.Module, not a function"),
        (Tiny(3), torch.zeros(3, 8, 8), "square images"),
        (Tiny(3), torch.zeros(1, 3, 8, 9), "square images"),
        (Tiny(3), (3, 8), "square images"),
        (Tiny(1), torch.zeros(1, 3, 8, 8), "torch.export cannot trace the network: .*channels"),
    ):
        with pytest.raises(TraceError, match=text):
            own_network(module, example)
