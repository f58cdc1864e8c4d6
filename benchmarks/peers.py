"""What benchmarks/step.py compares with: the released OFA, OQA and QFA supernets, and layers of Brevitas.

PEER_OFA  (environment) names a checkout of github.com/mit-han-lab/once-for-all
PEER_OQA  one of github.com/LaVieEnRoseSMZ/OQA
PEER_QFA  one of github.com/apple/ml-batchquant (without its checkpoints)
Brevitas  is used if it can be imported: pip install brevitas. It has no supernets: the largest subnet only, our static
          network with its quantized convolutions and activations in place of ours.

What their modules import and a plain CPU machine lacks (horovod, torchvision, gdown, torch._six, OQA's unreleased
oqa_mbv3) is replaced by empty stand-ins; the networks use none of it. Nothing of theirs is copied here.
"""

import collections.abc
import importlib.util
import os
import sys
import types
from collections.abc import Callable

import torch
from torch import Tensor, nn

from oncequant.arch import FLOAT_BITS, LayerSpec
from oncequant.models import build_network, space_of
from oncequant.models.mobilenet_v3 import MobileNetV3Config
from oncequant.network import elastic_layers
from oncequant.quantizers.functional import activate

SPACE = dict(ks_list=[3, 5, 7], expand_ratio_list=[3, 4, 6], depth_list=[2, 3, 4])
LARGEST = dict(ks=7, e=6, d=4)


def available(preset: str, subnet: str, method: str, width: float) -> list[str]:
    """Official codes whose checkouts are named, Brevitas if it is installed; those that have such a subnet."""
    widths = {"OFA": (1.0, 1.2), "OQA": (1.0,), "QFA": (1.2,)}
    wanted = {"oqat": ("OFA", "OQA"), "qfa": ("OFA", "QFA")}[method]
    official = [name for name in wanted if os.environ.get(f"PEER_{name}") and width in widths[name]]
    has_brevitas = method == "oqat" and subnet == "max" and importlib.util.find_spec("brevitas") is not None
    return official * (preset == "imagenet") + ["Brevitas"] * has_brevitas


class _BrevitasLayer(nn.Module):
    """A static layer of Brevitas with the interface of ElasticConv."""

    def __init__(self, spec: LayerSpec):
        super().__init__()
        from brevitas.nn import QuantConv2d, QuantIdentity
        from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerTensorFloat, Uint8ActPerTensorFloat

        grid = Int8ActPerTensorFloat if spec.signed_input else Uint8ActPerTensorFloat
        self.quantizer = QuantIdentity(grid, bit_width=spec.act_bits, collect_stats_steps=1)
        sizes = spec.in_channels, spec.out_channels, spec.kernel_size, spec.stride, spec.kernel_size // 2
        weight = dict(weight_quant=Int8WeightPerTensorFloat, weight_bit_width=spec.weight_bits)
        self.conv = QuantConv2d(*sizes, groups=spec.groups, bias=spec.bias, **weight)
        self.norm = nn.BatchNorm2d(spec.out_channels) if spec.batch_norm else None

    def forward(self, x: Tensor, spec: LayerSpec, activation: str | None, *_, **__) -> Tensor:
        y = self.conv(self.quantizer(activate(x, activation)))
        return y if self.norm is None else self.norm(y)

    def norm_to_defer(self, *_) -> None:
        return None


def brevitas(config: MobileNetV3Config) -> nn.Module:
    """The largest subnet of a configuration with all layers quantized, in training mode."""
    space = space_of(config)
    net = build_network(config, space.restrict(space.largest()))
    specs = net.space.layers(net.space.largest())
    assert all(spec.act_bits < FLOAT_BITS for spec in specs.values())
    for name, _ in elastic_layers(net):
        parent, _, kind = name.rpartition(".")
        setattr(net.get_submodule(parent), kind, _BrevitasLayer(specs[name]))
    return net.to(memory_format=torch.channels_last).train()


def supernet(name: str, bits: int, width: float, images: torch.Tensor) -> tuple[nn.Module, Callable[[bool], None]]:
    """The official supernet in training mode, and a function that sets its largest or a random subnet."""
    sys.path.insert(0, os.environ[f"PEER_{name}"])
    _stand_ins()
    if name == "OFA":
        from ofa.imagenet_classification.elastic_nn.networks.ofa_mbv3 import OFAMobileNetV3

        net = OFAMobileNetV3(n_classes=1000, dropout_rate=0, width_mult=width, **SPACE)
    elif name == "QFA":
        os.chdir(os.environ["PEER_QFA"])  # it opens its table of costs by a relative name
        from qfa.elastic_nn.modules.dynamic_op import DynamicSeparableConv2d
        from qfa.elastic_nn.networks import QFAMobileNetV3
        from qfa.elastic_nn.utils import set_activation_statistics

        DynamicSeparableConv2d.KERNEL_TRANSFORM_MODE = 1
        widths = dict(bn_param=(0.1, 1e-5), width_mult_list=[width], bits_list=[2, 3, 4])
        net = QFAMobileNetV3(n_classes=1000, dropout_rate=0.0, **widths, **SPACE)
        net.init_model("he_fout")
        for module in net.modules():
            if hasattr(module, "gamma"):
                nn.init.ones_(module.gamma)  # its batch norm is a member of the convolution
        set_activation_statistics(net)
        net.train()
        largest = dict(**LARGEST, b=bits)
        return net, lambda is_max: net.set_active_subnet(**largest) if is_max else net.sample_active_subnet()
    else:
        _module("elastic_nn.networks.oqa_mbv3", OQAMobileNetV3=None)
        from elastic_nn.modules.dynamic_op import DynamicSeparableConv2d
        from elastic_nn.modules.dynamic_quant_op import DynamicLSQSeparableConv2d
        from elastic_nn.networks import OFALSQMobileNetV3

        DynamicSeparableConv2d.KERNEL_TRANSFORM_MODE = DynamicLSQSeparableConv2d.KERNEL_TRANSFORM_MODE = 1
        widths = dict(width_mult_list=1.0, nbit_a=bits, nbit_w=bits)
        net = OFALSQMobileNetV3(n_classes=1000, dropout_rate=0, **widths, **SPACE)
        net.init_model("he_fout")
        for module in net.modules():
            if hasattr(module, "sa") and hasattr(module, "flag"):
                module.flag = 0  # take the step sizes from the next input, instead of from uninitialised memory
        net.set_active_subnet(**LARGEST)
        with torch.no_grad():
            net(images)
    net.train()
    return net, lambda largest: net.set_active_subnet(**LARGEST) if largest else net.sample_active_subnet()


def _module(name: str, **attributes) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__dict__.update(attributes)
    sys.modules[name] = module
    return module


def _stand_ins() -> None:
    def same(x, *args, **kwargs):
        return x

    names = ("init", "broadcast_parameters", "broadcast_optimizer_state")
    horovod = _module("horovod.torch", **{name: same for name in names}, allreduce=same, DistributedOptimizer=same)
    for name, value in (("size", 1), ("rank", 0), ("local_rank", 0)):
        setattr(horovod, name, lambda value=value: value)
    _module("horovod", torch=horovod)
    _module("torch._six", container_abcs=collections.abc)
    _module("gdown")
    names = ["RandomHorizontalFlip", "ColorJitter", "RandomResizedCrop", "Compose", "ToTensor", "Normalize", "Resize"]
    names.append("CenterCrop")
    functional = _module("torchvision.transforms.functional")
    transforms = _module("torchvision.transforms", functional=functional, **{n: type(n, (), {}) for n in names})
    _module("torchvision", transforms=transforms, datasets=_module("torchvision.datasets"))
