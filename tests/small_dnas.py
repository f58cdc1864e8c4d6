"""A small residual network and few steps for the tests of DNAS."""

from dataclasses import replace

import torch

from oncequant.methods import dnas
from oncequant.models import build_network
from oncequant.models.resnet import ResNetConfig

MODEL = ResNetConfig(stage_blocks=(1, 1, 1), stage_widths=(8, 12, 16), resolutions=(8,), image_channels=1, edge_bits=8)
FAST = dict(float_epochs=1, epochs=1, min_steps=12, batch_size=32, calibration_images=64, samples=2, jobs=1)


def supernet(config=MODEL, **changes):
    torch.manual_seed(0)
    return dnas.StochasticSupernet(build_network(replace(config, **changes)))
