"""The released OFA and OQA supernets, loaded from checkouts named by environment variables, for benchmarks/step.py.

PEER_OFA  checkout of github.com/mit-han-lab/once-for-all
PEER_OQA  checkout of github.com/LaVieEnRoseSMZ/OQA

What their modules import and a plain CPU machine lacks (horovod, torchvision, gdown, torch._six, OQA's unreleased
oqa_mbv3) is replaced by empty stand-ins; the networks use none of it. Nothing of theirs is copied here.
"""

import collections.abc
import os
import sys
import types
from collections.abc import Callable

import torch
from torch import nn

SPACE = dict(ks_list=[3, 5, 7], expand_ratio_list=[3, 4, 6], depth_list=[2, 3, 4])
LARGEST = dict(ks=7, e=6, d=4)


def available() -> list[str]:
    """Peers whose checkouts are named: OFA, OQA."""
    return [name for name in ("OFA", "OQA") if os.environ.get(f"PEER_{name}")]


def supernet(name: str, bits: int, images: torch.Tensor) -> tuple[nn.Module, Callable[[bool], None]]:
    """The official supernet of width 1.0 in training mode, and a function that sets its largest or a random subnet."""
    sys.path.insert(0, os.environ[f"PEER_{name}"])
    _stand_ins()
    if name == "OFA":
        from ofa.imagenet_classification.elastic_nn.networks.ofa_mbv3 import OFAMobileNetV3

        net = OFAMobileNetV3(n_classes=1000, dropout_rate=0, width_mult=1.0, **SPACE)
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
