"""Step sizes that are powers of two, for FPGAs: trained, exported and refused."""

import math
from dataclasses import replace

import pytest
import torch
from commands import fails
from small_export import digits, lowered, preset, subnet_of
from small_training import CONFIG, TINY
from small_training import digits as few_digits

from oncequant.export.format import Exported
from oncequant.export.formats import FORMATS
from oncequant.export.lower import power_of_two_over
from oncequant.export.verify import verify
from oncequant.methods import oqat
from oncequant.models import PRESETS
from oncequant.network import elastic_layers
from oncequant.quantizers.lsq import LSQ
from oncequant.quantizers.lsq_power_of_two import PowerOfTwoLSQ, nearest_power_of_two
from oncequant.quantizers.quantizer import Ask
from oncequant.run_folder import Run
from oncequant.supernet_file import load_supernet


def is_power_of_two(value):
    return math.frexp(value)[0] == 0.5


@pytest.mark.parametrize("family", ["nano", "resnet-nano"])
@pytest.mark.parametrize("bits", [4, 2])
def test_every_grid_of_an_export_has_one(family, bits, tmp_path, one_thread_and_quickly_compiled):
    config = (
        preset(family, bits) if family == "nano" else replace(PRESETS[family], weight_bits=(bits,), act_bits=(bits,))
    )
    subnet, arch = subnet_of(replace(config, power_of_two_steps=True, edge_bits=8))
    graph = lowered(subnet, arch)
    grids = [node.grid for node in graph.nodes if node.grid]
    assert len(grids) > 10 and all(is_power_of_two(grid.step) for grid in grids)
    assert all(grid.zero_point in (0, 2 ** (grid.bits - 1)) for grid in grids)
    for name in ("onnx", "package"):
        FORMATS[name].write(graph, tmp_path)
    images, labels = digits(subnet.config.image_channels)
    found = verify(subnet, Exported(graph, graph, tmp_path), [(images[:50], labels[:50])], ["onnx", "package"])
    judged = found.judgements["onnx"]
    assert judged.simulator_bit_equal_images == 50  # on integer kernels
    assert not [problem for problem in judged.problems if "fewer" not in problem and "less" not in problem]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 0.5), (-1.0, 1.0), (-0.3, 6.0), (-8.0, 0.0), (0.0, 0.0)])
def test_grids_between_layers_cover_the_range(low, high):
    grid = power_of_two_over(low, high)
    assert is_power_of_two(grid.step) and grid.zero_point in (0, 128)
    assert (255 - grid.zero_point) * grid.step >= high and -grid.zero_point * grid.step <= low
    reach = max(high / (255 - grid.zero_point), -low / 128 if grid.zero_point else 0)
    assert grid.step < 2.01 * max(reach, 1e-8)  # no larger than it must be


@pytest.mark.parametrize("step", [0.7, -0.3, 1.0, 0.02])
def test_the_learned_step_gets_the_gradient_of_the_rounded_one(step):
    quantizer, x = PowerOfTwoLSQ(), torch.linspace(0, 3, 50)
    with torch.no_grad():
        quantizer.learned.step_size.fill_(step)
    grid = quantizer.grid(x, Ask(3, False))
    assert grid.step_size.abs() == nearest_power_of_two(torch.tensor(step)) == 2.0 ** round(math.log2(abs(step)))
    (x * quantizer(x, Ask(3, False))).sum().backward()
    plain = LSQ()
    with torch.no_grad():
        plain.step_size.fill_(grid.step_size.item())
    (x * plain(x, Ask(3, False))).sum().backward()
    assert quantizer.learned.step_size.grad != 0
    torch.testing.assert_close(quantizer.learned.step_size.grad, plain.step_size.grad)


def test_bit_inheritance_doubles_the_steps(tmp_path):
    model = replace(TINY, power_of_two_steps=True)
    oqat.train(replace(CONFIG, bit_schedule=(4, 3), duration=0.25), Run(tmp_path, model, few_digits()))
    high, low = (dict(elastic_layers(load_supernet(tmp_path, stage))) for stage in ("4bit", "3bit"))
    for name, layer in low.items():
        quantizer, before = layer.act_quantizer, high[name].act_quantizer
        assert isinstance(quantizer, PowerOfTwoLSQ)
        ratio = (quantizer.learned.step_size / before.learned.step_size).abs().item()
        expected = 1.0 if name in ("stem", "classifier") or ".se_" in name else 2.0
        assert expected / 1.5 < ratio < expected * 1.5, name


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("qfa", "power_of_two_steps: only with learned step sizes, not batchquant (QFA: --activations lsq)"),
        ("dnas", "knows no --power-of-two-steps"),
    ],
)
def test_methods_that_have_other_grids_refuse(method, message, tmp_path, monkeypatch, capsys):
    words = "train", method, "--run", tmp_path / "run", "--power-of-two-steps"
    assert message in fails(monkeypatch, capsys, *words, status=2 if method == "dnas" else 1)
    assert not (tmp_path / "run").exists()
