"""The type in which training computes, chosen by timing."""

import math
from dataclasses import replace

import pytest
import torch
from commands import call
from small_training import CONFIG, digits

from oncequant import precision, runs
from oncequant.arch import LayerSpec
from oncequant.files import read_json
from oncequant.methods import dnas, oqat, qfa
from oncequant.models import PRESETS, space_of
from oncequant.models.mobilenet_v3 import PRESETS as MOBILE

CPU = torch.device("cpu")


@pytest.mark.parametrize("preset", PRESETS)
def test_the_heaviest_convolutions_are_timed_in_both_types(preset, monkeypatch):
    seen = []
    seconds = {torch.float32: 1.0, torch.bfloat16: 0.5}
    monkeypatch.setattr(precision, "timed", lambda layer, dtype, _: seen.append((layer, dtype)) or seconds[dtype])
    assert precision.faster(PRESETS[preset], CPU) == "bfloat16"
    of_float, of_half = ([layer for layer, d in seen if d == dtype] for dtype in (torch.float32, torch.bfloat16))
    assert (
        of_float == of_half and sorted(layer.depthwise for layer in of_half) == [False, True][: 1 + (preset in MOBILE)]
    )
    seconds[torch.bfloat16] = 0.99  # not worth the rounding
    assert precision.faster(PRESETS[preset], CPU) == "float32"


@pytest.mark.parametrize("preset", ["nano", "resnet-nano"])
def test_the_real_clock_is_asked(preset):
    assert precision.faster(PRESETS[preset], CPU) in ("float32", "bfloat16")


def test_a_device_without_bfloat16_takes_float32(monkeypatch):
    def refuse(x, *args, **options):
        raise RuntimeError("not implemented for this device")

    space = space_of(PRESETS["resnet-nano"])
    monkeypatch.setattr(precision.F, "conv2d", refuse)
    assert precision.timed(space.layers(space.largest())["stem"], torch.bfloat16, CPU) == math.inf


def test_what_was_chosen_is_kept_by_the_run(tmp_path, monkeypatch, capsys):
    words = ["train", "--run", tmp_path, "--max-train", "100", "--bit-schedule", "4", "--min-steps", "2"]
    words += ["--epochs", "1", "--float-epochs", "1", "--batch-size", "64", "--calibration-images", "16"]
    monkeypatch.setattr(runs, "faster", lambda *_: "bfloat16")
    call(monkeypatch, *words)
    assert read_json(tmp_path / "run.json")["method_config"]["precision"] == "bfloat16"
    monkeypatch.setattr(runs, "faster", lambda *_: pytest.fail("the run knows"))
    (tmp_path / "4bit.safetensors").unlink()
    call(monkeypatch, *words)  # goes on
    assert runs.open_run(tmp_path)[0].compute == "bfloat16"


@pytest.mark.parametrize("method", [oqat, qfa, dnas])
def test_precision_of_python_and_of_old_folders(method):
    assert method.Config().compute == method.Config(precision="float32").compute == "float32"
    old = {name: value for name, value in method.Config().to_json().items() if name != "precision"}
    assert method.Config.from_json(old).precision == "float32"
    assert method.Config(precision="bfloat16").schedule("float", digits()).compute == "bfloat16"
    with pytest.raises(ValueError, match="precision 'half': use one of auto, float32, bfloat16"):
        replace(CONFIG, precision="half")


@pytest.mark.parametrize("works", [True, False])
def test_convolutions_are_timed_on_one_thread(works, monkeypatch):
    seen, threads, conv = [], torch.get_num_threads(), torch.nn.functional.conv2d

    def noted(*args, **kwargs):
        seen.append(torch.get_num_threads())
        if not works:
            raise RuntimeError("not in this type")
        return conv(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "conv2d", noted)
    torch.set_num_threads(2)
    try:
        seconds = precision.timed(LayerSpec("conv", 8, 8, in_size=4, out_size=4), torch.float32, torch.device("cpu"))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert set(seen) == {1} and (0 < seconds < 60 if works else seconds == float("inf"))
