"""`oncequant compare`: the supernet beside networks trained one by one."""

import csv
import shutil

from commands import call, fails

from oncequant.compare import allowed_ways, uniform_archs
from oncequant.cost import COSTS
from oncequant.family import with_bits
from oncequant.files import read_json, read_lines
from oncequant.methods import oqat
from oncequant.models import space_of
from oncequant.models.mobilenet_v3 import PRESETS


def test_compare_counts_accuracy_and_training_images(digits_run, monkeypatch, capsys):
    call(monkeypatch, "compare", digits_run, "--deployments", "2", "--evaluations", "6")
    shown = capsys.readouterr().out
    assert all(way in shown for way in ("supernet", "nas-then-quantize", "search-then-retrain", "uniform"))
    found = read_json(digits_run / "compare.json")
    assert found["bits"] == 2 and len(found["deployments"]) == 8
    rows = list(csv.DictReader((digits_run / "compare.csv").open()))
    assert [float(row["top1_test"]) for row in rows] == [row["top1_test"] for row in found["deployments"]]
    steps, batch = 18, 64  # one epoch of 200 images less the validation split is 2 steps, --min-steps 6
    totals = {(row["way"], row["deployments"]): row for row in found["totals"]}
    metrics = read_lines(digits_run / "metrics.jsonl")
    supernets = sum({row["stage"]: row["images"] for row in metrics}.values())
    assert supernets == steps * batch * 3  # float, 4 and 2 bits; largest, smallest and one random subnet
    assert totals["supernet", 2]["images"] == totals["supernet", 1]["images"] == supernets
    assert totals["nas-then-quantize", 1]["images"] == supernets / 3 + 6 * batch
    assert totals["search-then-retrain", 1]["images"] == supernets + 2 * 6 * batch
    assert totals["uniform", 1]["images"] == 2 * 6 * batch
    for row in found["deployments"]:
        assert row["bitops"] <= row["budget"]
        assert 0 <= row["top1_test"] <= 1 and (row["images"] == 0) == (row["way"] == "supernet")
    before = {path: path.stat().st_mtime_ns for path in digits_run.glob("compare/**/*.safetensors")}
    assert len(before) >= 5
    call(monkeypatch, "compare", digits_run, "--deployments", "2", "--evaluations", "6")
    after = {path: path.stat().st_mtime_ns for path in digits_run.glob("compare/**/*.safetensors")}
    assert after == before and read_json(digits_run / "compare.json") == found


def test_a_float_network_alone_is_no_supernet(digits_run, tmp_path, monkeypatch, capsys):
    shutil.copytree(digits_run, tmp_path / "run")
    written = (tmp_path / "run" / "run.json").read_text()
    assert '"float_sandwich": true' in written
    (tmp_path / "run" / "run.json").write_text(written.replace('"float_sandwich": true', '"float_sandwich": false'))
    message = fails(monkeypatch, capsys, "compare", tmp_path / "run", "--ways", "nas-then-quantize")
    assert "nas-then-quantize takes subnets of a float supernet" in message and "--float-sandwich" in message
    assert allowed_ways(oqat.Config()) == ("supernet", "search-then-retrain", "uniform")
    assert set(allowed_ways(oqat.Config(float_sandwich=True))) == {*allowed_ways(oqat.Config()), "nas-then-quantize"}


def test_compare_needs_the_supernet(digits_run, tmp_path, monkeypatch, capsys):
    assert "holds bit-widths 4, 2" in fails(monkeypatch, capsys, "compare", digits_run, "--bits", "3")
    assert "deployments is at least 1" in fails(monkeypatch, capsys, "compare", digits_run, "--deployments", "0")
    for file in ("run.json", "float.safetensors", "4bit.safetensors", "2bit.safetensors"):
        shutil.copy(digits_run / file, tmp_path)
    lines = (digits_run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join(line for line in lines if '"float"' not in line))
    message = fails(monkeypatch, capsys, "compare", tmp_path)  # its float supernet was copied
    assert "does not say how float was trained" in message


def test_hand_scaled_networks_are_alike_in_all_blocks():
    space = space_of(with_bits(PRESETS["nano"], 2))
    archs = uniform_archs(space)
    assert len(archs) == 3 * 2 * 2 * 3  # resolutions, depths, kernels, ratios
    assert [cost for _, cost in archs] == sorted(cost for _, cost in archs)
    assert archs[0][0] == space.smallest() and archs[-1][0] == space.largest()
    for arch, cost in archs:
        assert cost == COSTS["bitops"](space.layers(arch))
        for kind in ("depth", "kernel_size", "expand_ratio"):
            assert len({value for name, value in arch.items() if name.endswith(kind)}) == 1
