"""A QFA run of a few steps on digits, for the tests of its training and of its search."""

from dataclasses import replace

import torch

from oncequant.data import load_data
from oncequant.methods import qfa
from oncequant.models.mobilenet_v3 import PRESETS
from oncequant.run_folder import Run

TINY = replace(
    PRESETS["nano"],
    num_classes=10,
    stage_widths=(16, 16),
    stage_strides=(2, 2),
    stage_se=(False, True),
    stage_hswish=(False, True),
    final_expand_width=24,
    feature_mix_width=32,
    expand_ratios=(1, 2),
    resolutions=(8, 10),
    edge_bits=8,
    se_bits=8,
)
QUICK = dict(epochs=1, float_epochs=1, min_steps=4, batch_size=32, calibration_images=64, mixed_subnets=1)


def digits():
    data = load_data("digits", size=10, seed=0, max_train=160)
    return replace(data, validation=data.validation.subset(torch.arange(120)))


def trained_in(folder):
    """(config, data, run folder) of a QFA run with all its stages."""
    cfg, data = qfa.Config(**QUICK), digits()
    qfa.train(cfg, Run(folder, TINY, data))
    return cfg, data, folder
