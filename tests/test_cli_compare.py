"""`oncequant compare`: the supernet beside networks trained one by one."""

import csv
import shutil
from dataclasses import replace
from typing import get_args

import pytest
from commands import call, fails
from small_training import CONFIG, digits

from oncequant.compare import (
    Deployment,
    Effort,
    Way,
    allowed_ways,
    differences,
    handed_out,
    hypervolumes,
    totals,
    uniform_archs,
)
from oncequant.cost import COSTS
from oncequant.family import with_bits
from oncequant.files import FileError, read_json, read_lines
from oncequant.hand_made import hand_made, train_for
from oncequant.hours import Forecast
from oncequant.methods import oqat
from oncequant.models import space_of
from oncequant.models.elastic_resnet import PRESETS as RESIDUAL
from oncequant.models.mobilenet_v3 import PRESETS
from oncequant.records import Metrics, read_records
from oncequant.run_folder import Run


def test_compare_counts_accuracy_and_training_images(digits_run, monkeypatch, capsys):
    call(monkeypatch, "compare", digits_run, "--deployments", "2", "--evaluations", "6")
    shown = capsys.readouterr().out
    assert all(way in shown for way in get_args(Way))
    found = read_json(digits_run / "compare.json")
    assert found["bits"] == 2 and len(found["deployments"]) == 4 * 2 + 2 + 1
    rows = list(csv.DictReader((digits_run / "compare.csv").open()))
    assert [float(row["top1_test"]) for row in rows] == [row["top1_test"] for row in found["deployments"]]
    steps, batch = 18, 64  # one epoch of 200 images less the validation split is 2 steps, --min-steps 6
    totals = {(row["way"], row["deployments"]): row for row in found["totals"]}
    metrics = read_lines(digits_run / "metrics.jsonl")
    supernets = sum({row["stage"]: row["images"] for row in metrics}.values())
    assert supernets == steps * batch * 2  # float, 4 and 2 bits; the largest and one other subnet
    assert totals["supernet", 2]["images"] == totals["supernet", 1]["images"] == supernets
    assert totals["nas-then-quantize", 1]["images"] == supernets / 3 + 6 * batch
    assert totals["search-then-retrain", 1]["images"] == supernets + 2 * 6 * batch
    assert totals["uniform", 1]["images"] == 2 * 6 * batch
    alone = [row for row in found["deployments"] if row["way"] in ("uniform", "search-then-retrain")]
    assert {row["images"] for row in alone} == {2 * 6 * batch}  # at every resolution
    for row in found["deployments"]:
        assert row["bitops"] <= row["budget"]
        assert 0 <= row["top1_test"] <= 1
        assert (row["images"] == 0) == (row["seconds"] == 0) == (row["way"] == "supernet")
    before = {path: path.stat().st_mtime_ns for path in digits_run.glob("compare/**/*.safetensors")}
    assert len(before) >= 5
    call(monkeypatch, "compare", digits_run, "--deployments", "2", "--evaluations", "6")
    after = {path: path.stat().st_mtime_ns for path in digits_run.glob("compare/**/*.safetensors")}
    assert after == before and read_json(digits_run / "compare.json") == found


def test_budgets_of_bytes(digits_run, tmp_path, monkeypatch):
    shutil.copytree(digits_run, tmp_path / "run", ignore=shutil.ignore_patterns("compare*"))
    small = "--deployments", "2", "--evaluations", "6", "--ways", "supernet", "hand-made"
    call(monkeypatch, "compare", tmp_path / "run", *small, "--front", "weight_bytes")
    found = read_json(tmp_path / "run" / "compare.json")
    assert found["front"] == "weight_bytes"
    for row in found["deployments"]:
        assert 0.4 * row["budget"] < row["weight_bytes"] <= row["budget"]


def test_a_float_network_alone_is_no_supernet(digits_run, tmp_path, monkeypatch, capsys):
    shutil.copytree(digits_run, tmp_path / "run")
    written = (tmp_path / "run" / "run.json").read_text()
    assert '"float_sandwich": true' in written
    (tmp_path / "run" / "run.json").write_text(written.replace('"float_sandwich": true', '"float_sandwich": false'))
    message = fails(monkeypatch, capsys, "compare", tmp_path / "run", "--ways", "nas-then-quantize")
    assert "nas-then-quantize takes subnets of a float supernet" in message and "--float-sandwich" in message
    assert allowed_ways(oqat.Config()) == ("supernet", "search-then-retrain", "uniform", "hand-made", "hand-made-whole")
    assert set(allowed_ways(oqat.Config(float_sandwich=True))) == {*allowed_ways(oqat.Config()), "nas-then-quantize"}


def test_compare_needs_the_supernet(digits_run, tmp_path, monkeypatch, capsys):
    assert "holds bit-widths 4, 2" in fails(monkeypatch, capsys, "compare", digits_run, "--bits", "3")
    assert "--deployments 0: use 1 to 1,000" in fails(monkeypatch, capsys, "compare", digits_run, "--deployments", "0")
    for file in ("run.json", "float.safetensors", "4bit.safetensors", "2bit.safetensors"):
        shutil.copy(digits_run / file, tmp_path)
    lines = (digits_run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join(line for line in lines if '"float"' not in line))
    message = fails(monkeypatch, capsys, "compare", tmp_path)  # its float supernet was copied
    assert "does not say how float was trained" in message


def test_hand_scaled_networks_are_alike_in_all_blocks():
    space = space_of(with_bits(PRESETS["nano"], 2))
    archs = uniform_archs(space, COSTS["bitops"])
    assert len(archs) == 3 * 2 * 2 * 3  # resolutions, depths, kernels, ratios
    assert [cost for _, cost in archs] == sorted(cost for _, cost in archs)
    assert archs[0][0] == space.smallest() and archs[-1][0] == space.largest()
    for arch, cost in archs:
        assert cost == COSTS["bitops"](space.layers(arch))
        for kind in ("depth", "kernel_size", "expand_ratio"):
            assert len({value for name, value in arch.items() if name.endswith(kind)}) == 1


def test_resnet8_is_made_by_hand_at_every_width():
    made = hand_made(RESIDUAL["resnet-cifar"], 4, COSTS["bitops"])
    by_size = hand_made(RESIDUAL["resnet-cifar"], 4, COSTS["weight_bytes"])
    sizes = [one.cost(COSTS["weight_bytes"]) for one in by_size]
    assert sizes == sorted(sizes) and {one.widths for one in by_size} == {one.widths for one in made}
    assert {(8, 8, 16), (16, 32, 64), (16, 24, 56), (64, 128, 256)} <= {one.widths for one in made}
    assert all(max(one.widths[0] * 4, one.widths[1] * 2) - one.widths[2] < 32 for one in made)
    assert (costs := [one.cost(COSTS["bitops"]) for one in made]) == sorted(costs)
    assert all(one.space.size() == 1 and one.model.is_float for one in made)
    mlperf = next(one for one in made if one.widths == (16, 32, 64))
    specs = mlperf.space.layers(mlperf.arch)  # MLPerf Tiny's has 78 thousand parameters, nine layers and a classifier
    assert sum(spec.weights for spec in specs.values()) == 77_360 and len(specs) == 10
    assert {spec.act_bits for name, spec in specs.items() if name not in ("stem", "classifier")} == {4}


def test_a_network_made_by_hand_has_the_time_that_it_is_given(tmp_path, monkeypatch):
    asked = []
    seconds = {"float": 0.02, "4bit": 0.03}  # of a step

    def rehearse(cfg, options, run, only):
        asked.append(options)
        steps = {stage: cfg.schedule(stage, run.data).steps for stage in oqat.stages(cfg)}
        return Forecast(sum(steps[stage] * seconds[stage] for stage in steps), 1.0, 0.0, 0.0)

    monkeypatch.setattr("oncequant.hand_made.rehearse", rehearse)
    cfg = replace(CONFIG, bit_schedule=(4,), float_epochs=4, epochs=3, min_steps=0, batch_size=32)
    one = hand_made(RESIDUAL["resnet-nano"], 4, COSTS["bitops"])[0]
    run = Run(tmp_path, one.model, digits(max(one.model.resolutions)))
    train_for(cfg, run, 0.5)
    train_for(cfg, run, 0.5)  # nothing is left to do
    assert asked == [None]
    steps = {row.stage: row.steps for row in read_records(tmp_path / "metrics.jsonl", Metrics)}
    assert sum(steps[stage] * seconds[stage] for stage in steps) == pytest.approx(0.5, rel=0.1)
    assert (tmp_path / "4bit.safetensors").exists()
    (tmp_path / "schedule.json").write_text("{}")
    with pytest.raises(FileError, match="schedule.json"):
        train_for(cfg, run, 0.5)


def test_every_way_hands_out_the_best_on_validation_that_fits():
    def row(way, budget, validation, test):
        return Deployment(way, budget, budget, budget, validation, test, 64, 3.0, {"width": int(budget)})

    rows = [row("hand-made", 2.0, 0.80, 0.99), row("hand-made", 1.0, 0.85, 0.84), row("hand-made", 4.0, 0.90, 0.87)]
    assert [(one.budget, one.bitops, one.top1_test) for one in handed_out(rows, "hand-made")] == [
        (1.0, 1.0, 0.84), (2.0, 1.0, 0.84), (4.0, 4.0, 0.87)
    ]  # fmt: skip
    rows += [row("supernet", 1.0, 0.84, 0.83), row("supernet", 2.0, 0.85, 0.85), row("supernet", 4.0, 0.9, 0.9)]
    assert differences(rows)["hand-made"] == dict(budgets=3, at_least=2, mean_lead=pytest.approx(0.01))
    (whole,) = (entry for entry in totals(rows[:3], {"hand-made": Effort()}))
    assert whole["networks"] == 3 and whole["seconds"] == 9.0  # all were trained, two are handed out
    assert whole["top1_test"] == pytest.approx((0.84 + 0.84 + 0.87) / 3) and whole["mean_bitops"] == 2.0


def test_fronts_of_known_networks():
    def row(way, cost, top1, width=0):
        return Deployment(way, cost, cost, 2 * cost, top1, top1, 64, 3.0, {"width": width})

    rows = [row("supernet", 1.0, 0.8), row("supernet", 2.0, 0.9), row("hand-made", 2.0, 0.8, 1)]
    rows += [row("hand-made-whole", 2.0, 0.95, 2)]
    found = hypervolumes(rows)
    # the box is 2 wide and 0.2 high; at cost 1 and error 0.2 there is nothing below the worst
    assert found == {
        "supernet": {"bitops": 0.0, "weight_bytes": 0.0}, "hand-made": {"bitops": 0.0, "weight_bytes": 0.0}
    }  # fmt: skip
    rows += [row("supernet", 1.0, 0.9)]
    assert hypervolumes(rows)["supernet"]["bitops"] == pytest.approx(0.25)
    lead = differences(rows[:4])
    assert lead["hand-made"] == dict(budgets=1, at_least=1, mean_lead=pytest.approx(0.1))
    assert lead["hand-made-whole"] == dict(budgets=1, at_least=0, mean_lead=pytest.approx(-0.05))
    shared = {way: Effort(100, 9.0) if way == "supernet" else Effort() for way in get_args(Way)}
    table = {(entry["way"], entry["deployments"]): entry for entry in totals(rows, shared)}
    assert table["supernet", 3]["seconds"] == 9 + 3 and table["hand-made", 1]["seconds"] == 3
    assert table["supernet", 3]["images"] == 100 + 64 and table["supernet", 1]["networks"] == 1
