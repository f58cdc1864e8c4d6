"""Small networks to export: untrained, with calibrated batch norm."""

from dataclasses import replace
from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from oncequant.export.lower import lower
from oncequant.family import with_bits
from oncequant.measure import calibrate
from oncequant.models import build_network, extract_subnet
from oncequant.models.mobilenet_v3 import PRESETS
from oncequant.network import elastic_layers
from oncequant.quantizers.functional import activate
from oncequant.quantizers.quantizer import Ask

MEAN, STD = {1: (0.3,), 3: (0.31, 0.28, 0.33)}, {1: (0.37,), 3: (0.35, 0.4, 0.38)}
CLASSES = tuple("0123456789")
SMALLER = {"nano": PRESETS["nano"], "cifar": replace(PRESETS["cifar"], depths=(1, 2), expand_ratios=(3, 4))}


@cache
def digits(channels):
    """Normalised images (400, channels, 16, 16) and labels."""
    data = load_digits()
    pixels = torch.tensor(data.images[:400] / 16, dtype=torch.float32)[:, None]
    images = F.interpolate(pixels, (16, 16), mode="bilinear")
    mean, std = (torch.tensor(v[channels]).view(1, -1, 1, 1) for v in (MEAN, STD))
    return (images.expand(-1, channels, -1, -1) - mean) / std, torch.tensor(data.target[:400])


def initialise(net, arch, images):
    """Step sizes from one batch, and random batch-norm weights of both signs."""
    generator = torch.Generator().manual_seed(1)

    def hook(name):
        def start(layer, inputs):
            x, spec, activation, *_ = inputs
            x = activate(x, activation)
            if layer.act_quantizer is not None:  # other subnets may quantize what this one keeps in float
                act_bits, weight_bits = (4 if b == 32 else b for b in (spec.act_bits, spec.weight_bits))
                layer.act_quantizer.initialise(x, Ask(act_bits, spec.signed_input))
                layer.weight_quantizer.initialise(layer.sliced_weight(spec), Ask(weight_bits, True))

        return start

    with torch.no_grad():
        for _, layer in elastic_layers(net):
            if layer.norm is not None:
                channels = layer.norm.weight.shape
                layer.norm.weight.copy_(torch.rand(channels, generator=generator) * 1.4 - 0.4)
                layer.norm.bias.copy_(torch.randn(channels, generator=generator) * 0.3)
        hooks = [layer.register_forward_pre_hook(hook(name)) for name, layer in elastic_layers(net)]
        net.train()(images, arch)
    for h in hooks:
        h.remove()


def subnet_of(config, seed=0, resolution=None):
    """A random subnet of an untrained supernet, calibrated; (subnet, arch)."""
    torch.manual_seed(seed)
    images, _ = digits(config.image_channels)
    supernet = build_network(config)
    initialise(supernet, supernet.space.largest(), images[:32])
    arch = supernet.space.sample(np.random.default_rng(seed))
    if resolution:
        arch = arch.replace(resolution=resolution)
    subnet = extract_subnet(supernet, arch)
    calibrate(subnet, arch, [(images[:100], None)])
    return subnet, arch


def preset(name, bits, edge=8, se=8, signed=True):
    config = replace(SMALLER[name], edge_bits=edge, se_bits=se, signed_activations=signed)
    return with_bits(config, bits) if isinstance(bits, int) else replace(config, weight_bits=bits, act_bits=bits)


def preprocessing(channels):
    return MEAN[channels], STD[channels], CLASSES, 16


def lowered(subnet, arch, **options):
    images, _ = digits(subnet.config.image_channels)
    return lower(subnet, arch, *preprocessing(subnet.config.image_channels), [(images[:100], None)], **options)


@cache
def nano4():
    subnet, arch = subnet_of(preset("nano", 4))
    return subnet, arch, lowered(subnet, arch)
