"""OQAT of a few steps on digits, for the tests of training."""

from dataclasses import replace

import torch

from oncequant.data import load_data
from oncequant.family import with_bits
from oncequant.measure import initialise_quantizers
from oncequant.methods import oqat
from oncequant.models import build_network
from oncequant.models.mobilenet_v3 import PRESETS
from oncequant.sandwich import sandwich_step
from oncequant.schedule import Schedule
from oncequant.tensor_files import read_tensors
from oncequant.train import fit

TINY = replace(PRESETS["nano"], resolutions=(6, 8), stage_widths=(8, 8, 8), final_expand_width=16, feature_mix_width=16,
               stem_width=8, edge_bits=8, se_bits=8)  # fmt: skip
CONFIG = oqat.Config(
    bit_schedule=(4, 2), epochs=1, float_epochs=1, min_steps=4, batch_size=32, random_subnets=1,
    calibration_images=64, checkpoint_seconds=0,
)  # fmt: skip


def digits(size=8, train=120):
    return load_data("digits", size=size, max_train=train)


def weights(run_dir):
    return {stage: read_tensors(run_dir / f"{stage}.safetensors")[0] for stage in oqat.stages(CONFIG)}


def assert_equal_runs(first, second):
    for stage, tensors in weights(first).items():
        for name, tensor in weights(second)[stage].items():
            assert torch.equal(tensor, tensors[name]), (stage, name)


class Interrupted(Exception):
    pass


def small_fit(tmp_path, step=None, steps=3, **schedule):
    torch.manual_seed(0)
    net = build_network(TINY)
    step = step or (lambda images, labels, rng, done: sandwich_step(net, images, labels, [net.space.smallest()]))
    fit(net, step, digits(), Schedule(steps, 16, **{"lr": 1e-3, **schedule}), stage="s", run_dir=tmp_path, seed=0,
        checkpoint_seconds=0)  # fmt: skip


def supernet(bits, seed=0):
    torch.manual_seed(seed)
    net = build_network(with_bits(TINY, bits))
    if bits < 32:
        initialise_quantizers(net, torch.randn(16, 1, 8, 8))
    return net
