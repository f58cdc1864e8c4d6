"""Commands of the command line called in this process, short options for them, and folders of images."""

import sys

import numpy as np
import pytest
from PIL import Image

from oncequant import cli
from oncequant.files import read_json
from oncequant.models import config_from_json

TRAINING = ["--epochs", "1", "--float-epochs", "1", "--min-steps", "6", "--random-subnets", "1"]
TRAINING += ["--calibration-images", "64", "--bit-schedule", "4", "2"]
QUICK = ["--evaluations", "6", *TRAINING]
SMALL = ["--width", "0.5", "--depths", "1", "2", "--kernel-sizes", "3", "--expand-ratios", "2", "3"]
DIGITS_TRAINING = ["--max-train", "200", "--resolutions", "8", "10", "--float-sandwich", *TRAINING, *SMALL]
DIGITS = [*DIGITS_TRAINING, "--evaluations", "6"]  # of the fixture `digits_run`


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["oncequant", *map(str, arguments)])
    cli.main()


def fails(monkeypatch, capsys, *arguments, status=1):
    """The one line of a refused command; its status is 2 if the words themselves are wrong."""
    with pytest.raises(SystemExit) as stopped:
        call(monkeypatch, *arguments)
    assert stopped.value.code == status
    return " ".join(capsys.readouterr().err.split())


def model_of(run):
    """The model's configuration in a run folder."""
    return config_from_json(read_json(run / "run.json")["model"]["config"])


def image_folder(root, classes, per_class, size, mode="RGB"):
    rng = np.random.default_rng(0)
    for c in range(classes):
        folder = root / f"class{c}"
        folder.mkdir(parents=True)
        for i in range(per_class):
            side = size if isinstance(size, int) else int(rng.integers(*size))
            pixels = rng.integers(0, 128, (side, side + i % 3, 3), dtype=np.uint8) + np.uint8(100 * c)
            Image.fromarray(pixels).convert(mode).save(folder / f"{i}.png")
    return root
