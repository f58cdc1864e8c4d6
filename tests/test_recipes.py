"""The recipes for ImageNet run, on a few images."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def family_of(pid):
    """The process and all that it started, the youngest generation first."""
    listed = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    return [member for child in listed for member in family_of(int(child))] + [pid]


@pytest.mark.parametrize("method, last", [("oqat", "4bit"), pytest.param("qfa", "mixed", marks=pytest.mark.slow)])
def test_the_imagenet_recipes_run_on_a_few_jpegs(method, last, tmp_path):
    """Streamed images of different sizes, published options but for the scale; of QFA in two processes."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 30), ("test", 5)):
        for name in ("n01440764", "n01443537"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                height, width = generator.integers(40, 90, 2)
                pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.JPEG")
    small = "--batch-size 8 --float-epochs 1 --epochs 1 --min-steps 3 --calibration-images 16 "
    small += "--width 0.35 --resolutions 32 --depths 2 --kernel-sizes 3 --validation-fraction 0.2 --resident-gib 0"
    small += " --bit-schedule 4" if method == "oqat" else " --mixed-subnets 1 --range-batch 4"
    evaluations = dict(oqat="4", qfa="30")[method]
    environment = dict(DATA=str(tmp_path / "images"), RUN=str(tmp_path / "run"), EVALUATIONS=evaluations)
    environment["DEVICES"] = dict(oqat="1", qfa="2")[method]
    environment |= dict(POPULATION="8", GENERATIONS="2")
    environment |= {**os.environ, "OPTIONS": small, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"} | environment
    recipe = Path(__file__).parent.parent / "recipes" / f"{method}_imagenet.sh"
    process = subprocess.Popen(["sh", str(recipe)], env=environment)
    try:
        assert process.wait(300) == 0
    except subprocess.TimeoutExpired:
        for pid in family_of(process.pid):
            os.kill(pid, signal.SIGABRT)  # each prints where it stands
            time.sleep(0.5)
        raise
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    published = dict(
        oqat=dict(optimizer="sgd"),
        qfa=dict(
            optimizer="sgd", quantized_lr=6 * 0.0025 * 2, clip_norm=83, weight_decay=5e-6, label_smoothing=0.1,
            learned_offsets=1, sync_ranges=False, bits=[2, 3, 4],
        ),
    )[method]  # fmt: skip
    assert run["method_config"].items() >= published.items() and run["model"]["preset"] == "imagenet"
    searched = json.loads((tmp_path / "run" / "commands.jsonl").read_text().splitlines()[1])["command"]
    assert method == "oqat" or "--front qfa_mflops" in searched and "--front-members 0" in searched
    assert {"float.safetensors", f"{last}.safetensors", "report"} <= {p.name for p in (tmp_path / "run").iterdir()}
    exports = json.loads((tmp_path / "run" / "exports.json").read_text())
    assert exports and all(row["problems"] == [] and row["images"] == 10 for row in exports)
