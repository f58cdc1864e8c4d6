import csv
import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from oncequant.compare import Deployment, Effort, differences, hypervolumes, totals
from oncequant.cost import COSTS
from oncequant.family import with_bits
from oncequant.models import space_of
from oncequant.models.mobilenet_v3 import PRESETS
from oncequant.records import Measurement, to_json
from oncequant.report import ReportError, write_report
from oncequant.report.contents import read_contents
from oncequant.report.sections import page_data, stretch, top1_axis
from oncequant.search.measurements import all_costs
from oncequant.search.pareto import spread

CLASSES = ["zero", "one", "a < b & c", "</script><b>bold</b>", "{{data}}", *"56789"]
STAGES = {"float": 32, "4bit": 4, "3bit": 3, "2bit": 2}
# what a bit-width can reach, and how much a small network loses; in the range of the digits task
CEILING = {"float": 0.994, "4bit": 0.991, "3bit": 0.986, "2bit": 0.971}
LOSS = {"float": 0.01, "4bit": 0.02, "3bit": 0.03, "2bit": 0.06}

SHOWN = [name for name, cost in COSTS.items() if cost.shown]


def make_run_folder(folder: Path, measurements: int = 60, seed: int = 0) -> Path:
    """A complete synthetic run folder (oqat, nano space) with plausible numbers."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    config = PRESETS["nano"]
    spaces = {stage: space_of(with_bits(config, bits)) for stage, bits in STAGES.items()}

    def measure(stage, searcher, arch):
        space = spaces[stage]
        shrunk = COSTS["macs"](space.layers(space.largest())) / COSTS["macs"](space.layers(arch))
        error = 1 - CEILING[stage] + LOSS[stage] * (shrunk**0.8 - 1) / 2 + abs(rng.normal(0, 0.006))
        return Measurement(space.brief(arch), round((1 - error) * 360) / 360, all_costs(space, arch), stage, searcher)

    lines, family, metrics = [], [], []
    for stage, space in spaces.items():
        for step in range(10, 601, 10):
            row = {"stage": stage, "step": step, "steps": 600, "lr": 0.05 * (1 - step / 600), "time_s": 0.04 * step}
            start = 2.3 if stage == "float" else 0.5
            row["loss"] = start * float(np.exp(-step / 120)) + 0.1 + abs(rng.normal(0, 0.03))
            if step % 100 == 0:
                gain = 1 - (0.6 if stage == "float" else 0.08) * np.exp(-step / 150)
                row |= {"top1_largest": CEILING[stage] * gain, "top1_smallest": (CEILING[stage] - LOSS[stage]) * gain}
            metrics.append(row)
        found = []
        for searcher in ("coarse_to_fine", "nsga2", "random") if stage != "float" else ():
            for k in range(measurements // 3):
                arch = space.sample(rng)
                if searcher != "random":  # the others look more at the ends of the front
                    end = (space.smallest(), space.largest())[k % 2]
                    arch = space.decode(space.mutate_codes(space.encode(end)[None], 0.3, rng)[0])
                found.append(measure(stage, searcher, arch))
        lines += found
        chosen = zip((f"{stage}-{size}" for size in "SML"), spread(found, 3, "weight_bytes"))
        for name, m in chosen if found else [("float-max", measure(stage, "", space.largest()))]:
            entry = {"name": name, "stage": stage, "bits": STAGES[stage], "arch": dict(m.arch), "costs": m.costs}
            family.append(entry | {"top1_validation": m.top1, "top1_test": m.top1 - 0.004})
    exports = []
    for k, entry in enumerate(e for e in family if e["stage"] != "float"):
        ideal = entry["costs"]["weight_bytes"]
        sizes = {"package_bytes": int(1.06 * ideal), "ideal_bytes": ideal, "onnx_bytes": int(2.4 * ideal) + 9000}
        times = {"latency_ms": 0.11 + 0.01 * k, "float_latency_ms": 0.19 + 0.01 * k}
        checks = {"top1_plain": entry["top1_test"], "top1_deployed": entry["top1_test"], "images": 360}
        exports.append(
            {k: entry[k] for k in ("name", "stage", "arch")}
            | {"folder": f"exports/{entry['name']}", **sizes, **times}
            | {**checks, "argmax_differences": 2 if k == 4 else 0, "float_onnx_bytes": 4 * entry["costs"]["params"]}
            | {"integer_layers": 17, "float_layers": 5, "problems": []}
        )
    images = {"name": "digits", "classes": CLASSES, "train": 1077, "validation": 360, "test": 360}
    run = {
        "method": "oqat",
        "command": "oncequant run --data digits --run runs/digits",
        "version": "0.1.0",
        "commit": "8143905",
        "device": "NVIDIA H100 80GB HBM3",
        "date": "2025-11-21",
        "seed": 0,
        "torch": "2.13.0",
        "data": images | {"fingerprint": "3f9c1b7a", "size": 16, "channels": 1},
        "model": {"name": "mobilenet_v3", "preset": "nano", "config": asdict(config)},
        "method_config": {"steps": 600, "bits": [4, 3, 2]},
    }
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    (folder / "measurements.jsonl").write_text("".join(json.dumps(to_json(line)) + "\n" for line in lines))
    (folder / "family.json").write_text(json.dumps(family))
    (folder / "exports.json").write_text(json.dumps(exports))
    return folder


def data_in(page: Path) -> dict:
    """The data that the page's script reads."""
    return json.loads(re.search(r"<script>const DATA = (.*);</script>", page.read_text())[1])


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = make_run_folder(tmp_path_factory.mktemp("runs") / "digits")
    write_report(folder)
    return folder


def lines_of(folder):
    return [json.loads(line) for line in (folder / "measurements.jsonl").read_text().splitlines()]


def test_page_and_files_are_written(run_folder):
    names = {path.name for path in (run_folder / "report").iterdir()}
    tables = {f"{name}.csv" for name in ("metrics", "measurements", "family", "exports", "times")}
    assert names == {"index.html", "times.html", "pareto.png", "training.png", *tables}
    assert (run_folder / "report/index.html").stat().st_size < 1_000_000


def test_page_loads_nothing(run_folder):
    text = (run_folder / "report/index.html").read_text()
    assert not re.search(r"<link|<img|@import|url\(|fetch\(|XMLHttpRequest|import\(", text)
    assert not re.search(r"(src|href|action)\s*=", text)
    assert "default-src 'none'; img-src data:;" in text  # pictures are inside the page


def test_page_has_every_measurement_network_and_export(run_folder):
    data = data_in(run_folder / "report/index.html")
    stages = [stage["name"] for stage in data["stages"]]
    shown = [(stages[p["stage"]], p["searcher"], p["top1"], p["costs"]) for p in data["points"]]
    assert shown == [
        (m["stage"], m["searcher"], m["top1"], [m["costs"][name] for name in SHOWN]) for m in lines_of(run_folder)
    ]
    assert stages == list(STAGES)
    exports = data["exports"]
    assert exports["names"] == [f"{b}bit-{s}" for b in (4, 3, 2) for s in "SML"]
    assert [f["name"] for f in data["family"]] == ["float-max", *exports["names"]]
    (table,) = exports["tables"]
    shown = [dict(zip(table["columns"], texts)) for texts in table["texts"]]
    assert shown[4]["Verified"].startswith("✗ differs on 2") and shown[0]["Verified"] == "✓ all 360 images"
    assert shown[0]["Same as trained"] == "–"


def test_dates_and_times_are_on_a_page_of_their_own(run_folder):
    page, times = ((run_folder / "report" / name).read_text() for name in ("index.html", "times.html"))
    for text in ("2025-11-21", "1.73×", "0.110 ms", "<td>2bit</td><td>24.0</td>"):  # of a folder of an older version
        assert text in times and text not in page
    with (run_folder / "report/exports.csv").open() as file:
        assert not [name for name in next(csv.reader(file)) if name.endswith("_ms")]
    with (run_folder / "report/times.csv").open() as file:
        assert next(csv.reader(file)) == ["name", "latency_ms", "float_latency_ms"]


def test_exports_of_networks_that_are_no_longer_chosen_are_left_out(run_folder, tmp_path):
    for name in ("run.json", "family.json", "exports.json"):
        (tmp_path / name).write_bytes((run_folder / name).read_bytes())
    family = json.loads((tmp_path / "family.json").read_text())
    other = next(entry for entry in family if entry["name"] == "3bit-S")["arch"]
    next(entry for entry in family if entry["name"] == "3bit-M")["arch"] = other  # a later search found this one
    (tmp_path / "family.json").write_text(json.dumps([entry for entry in family if entry["name"] != "2bit-L"]))
    shown = data_in(write_report(tmp_path))["exports"]["names"]
    assert shown == ["4bit-S", "4bit-M", "4bit-L", "3bit-S", "3bit-L", "2bit-S", "2bit-M"]


def test_layer_tables_add_up_to_the_measured_costs(run_folder):
    data = data_in(run_folder / "report/index.html")
    for item in [*data["points"], *data["family"]]:
        rows = [data["rows"][i] for i in item["layers"]]
        assert sum(row[9] for row in rows) == item["costs"][0]
        assert sum(row[10] for row in rows) == item["costs"][3]
        assert rows[0][0] == "stem" and rows[-1][0] == "classifier"
    first = {name: value for name, value in zip(data["choices"], data["points"][0]["arch"]) if value is not None}
    assert first == lines_of(run_folder)[0]["arch"]


def test_fronts_are_not_dominated(run_folder):
    data = data_in(run_folder / "report/index.html")
    for cost in range(len(data["costs"])):
        for stage, front in enumerate(data["fronts"][cost]):
            best = [data["points"][i] for i in front]
            for p in (p for p in data["points"] if p["stage"] == stage):
                assert any(q["costs"][cost] <= p["costs"][cost] and q["top1"] >= p["top1"] for q in best)
            assert sorted(best, key=lambda p: p["top1"]) == best == sorted(best, key=lambda p: p["costs"][cost])


def test_searchers_are_compared_on_one_reference(tmp_path):
    folder = make_run_folder(tmp_path, measurements=30)
    cheap, good, *_ = lines_of(folder)
    cheap |= {"searcher": "one", "top1": 0.5, "costs": dict.fromkeys(COSTS, 10)}
    good |= {"searcher": "two", "top1": 0.9, "costs": dict.fromkeys(COSTS, 1000)}
    middle = cheap | {"searcher": "both", "top1": 0.8, "costs": dict.fromkeys(COSTS, 100)}
    lines = [cheap, good, cheap | {"searcher": "both"}, middle, good | {"searcher": "both"}]
    (folder / "measurements.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = page_data(read_contents(folder))["searchers"]
    assert [(r["searcher"], r["measured"], r["best"]) for r in rows] == [
        ("one", 1, 0.5),
        ("two", 1, 0.9),
        ("both", 3, 0.9),
    ]
    # cheapest and best touch the reference; the middle one covers half of log cost times three quarters of top-1
    # (costs of memory are always those of the architectures, which are two here)
    shown = sum(cost.shown and not cost.structural for cost in COSTS.values())
    assert [r["shares"][:shown] for r in rows] == [pytest.approx([share] * shown) for share in (0, 0, 0.375)]


def test_text_of_the_user_is_escaped(run_folder):
    text = (run_folder / "report/index.html").read_text()
    assert "<b>bold" not in text and "a < b & c" not in text
    assert text.count("</script>") == 2
    assert data_in(run_folder / "report/index.html")["run"]["data"]["classes"] == CLASSES


def test_csv_files_round_trip(run_folder):
    with (run_folder / "report/measurements.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    back = [
        {"stage": r["stage"], "searcher": r["searcher"], "arch": json.loads(r["arch"]), "top1": float(r["top1"])}
        | {"costs": {name: float(r[name]) for name in COSTS}}
        for r in rows
    ]
    assert back == lines_of(run_folder)
    for name, columns in (("family", {"name", "top1_test", "bitops"}), ("exports", {"name", "onnx_bytes"})):
        with (run_folder / f"report/{name}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        entries = json.loads((run_folder / f"{name}.json").read_text())
        assert columns <= set(rows[0]) and [r["name"] for r in rows] == [e["name"] for e in entries]


@pytest.mark.parametrize(
    "there, written",
    [
        ((), set()),
        (("metrics.jsonl",), {"training.png", "metrics.csv"}),
        (("metrics.jsonl", "measurements.jsonl"), {"training.png", "metrics.csv", "pareto.png", "measurements.csv"}),
        (("family.json",), {"pareto.png", "family.csv"}),
    ],
)
def test_half_finished_runs(run_folder, tmp_path, there, written):
    for name in ("run.json", *there):
        (tmp_path / name).write_bytes((run_folder / name).read_bytes())
    page = write_report(tmp_path)
    assert {path.name for path in page.parent.iterdir()} == {"index.html", "times.html", *written}


def test_other_ways_are_drawn_and_listed(run_folder, tmp_path):
    (tmp_path / "run.json").write_bytes((run_folder / "run.json").read_bytes())
    rows = [
        Deployment(way, cost, cost, cost / 8, top1, top1, 640, 2.5, {"width": k})
        for k, (way, cost, top1) in enumerate(
            [("supernet", 1e6, 0.8), ("supernet", 2e6, 0.9), ("hand-made", 2e6, 0.85), ("hand-made-whole", 2e6, 0.91)]
        )
    ]
    found = dict(bits=4, totals=totals(rows, dict.fromkeys(("supernet", "hand-made", "hand-made-whole"), Effort())))
    found |= dict(hypervolumes=hypervolumes(rows), against_supernet=differences(rows))
    (tmp_path / "compare.json").write_text(json.dumps(found | dict(deployments=[asdict(row) for row in rows])))
    page = write_report(tmp_path)
    assert (page.parent / "compare.png").exists()
    assert data_in(page)["comparison"]["against_supernet"]["hand-made"]["at_least"] == 1
    assert "compare" in data_in(page)["pictures"]
    (tmp_path / "compare.json").write_text(json.dumps(dict(bits=4, totals=[], deployments=[])))  # of an older version
    assert data_in(write_report(tmp_path))["comparison"] is None


def test_torn_last_line_and_diverged_loss(run_folder, tmp_path):
    (tmp_path / "run.json").write_bytes((run_folder / "run.json").read_bytes())
    for name in ("metrics.jsonl", "measurements.jsonl"):
        (tmp_path / name).write_text((run_folder / name).read_text()[:-20])
    rows = (tmp_path / "metrics.jsonl").read_text()
    diverged = {"stage": "float", "step": 5, "steps": 600, "time_s": 1.0, "loss": float("nan")}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(diverged) + "\n" + rows)
    data = data_in(write_report(tmp_path))
    assert len(data["points"]) == len(lines_of(run_folder)) - 1
    assert np.isnan(data["curves"][0]["loss"][0][1])


def test_mixed_precision_stage_keeps_bits_as_choices(tmp_path):
    config = replace(PRESETS["nano"], weight_bits=(2, 4), act_bits=(2, 4), edge_bits=8)
    space = space_of(config)
    arch = space.sample(np.random.default_rng(0))
    costs = {name: cost(space.layers(arch)) for name, cost in COSTS.items()}
    line = {"stage": "mixed", "searcher": "nsga2", "arch": dict(space.brief(arch)), "top1": 0.9, "costs": costs}
    (tmp_path / "run.json").write_text(json.dumps({"model": {"config": asdict(config)}}))
    (tmp_path / "measurements.jsonl").write_text(json.dumps(line) + "\n")
    data = data_in(write_report(tmp_path))
    assert {row[7] for row in data["rows"]} == {2, 4, 8, 32}
    assert sum(data["rows"][i][10] for i in data["points"][0]["layers"]) == costs["weight_bytes"]


def test_bits_by_role_are_of_networks_with_mixed_precision(tmp_path):
    config = replace(PRESETS["nano"], weight_bits=(2, 4), act_bits=(2, 4), edge_bits=8)
    space, lines = space_of(config), []
    bits = [name for name in space.free if name.endswith("_bits")]
    mixed = space.largest().replace(**{name: 2 for name in bits if name.endswith("depthwise.weight_bits")})
    for arch, top1 in ((space.largest(), 0.9), (mixed, 0.8), (space.smallest(), 0.5)):
        costs = {name: cost(space.layers(arch)) for name, cost in COSTS.items()}
        line = dict(stage="mixed", searcher="predicted", arch=dict(space.brief(arch)), top1=top1, costs=costs)
        lines.append(json.dumps(line) + "\n")
    (tmp_path / "run.json").write_text(json.dumps({"model": {"config": asdict(config)}}))
    (tmp_path / "measurements.jsonl").write_text("".join(lines))
    table = page_data(read_contents(tmp_path))["bits_by_role"]
    means = {(row["role"], row["what"]): row["mean"] for row in table}
    assert means["depthwise", "weights"] == 2 and means["depthwise", "inputs"] == means["project", "weights"] == 4


def test_only_costs_that_are_shown_must_be_there(run_folder, tmp_path):
    """Measurements from before a cost was added."""
    (tmp_path / "run.json").write_bytes((run_folder / "run.json").read_bytes())
    lines = [line | {"costs": {name: line["costs"][name] for name in SHOWN}} for line in lines_of(run_folder)]
    (tmp_path / "measurements.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = data_in(write_report(tmp_path))
    assert [p["costs"] for p in data["points"]] == [list(line["costs"].values()) for line in lines]


def test_errors_name_path_and_remedy(tmp_path):
    with pytest.raises(ReportError, match=r"missing is not a run folder.*run\.json.*measurements\.jsonl"):
        write_report(tmp_path / "missing")
    with pytest.raises(ReportError, match=r"not a run folder"):
        write_report(tmp_path)
    (tmp_path / "run.json").write_text('{"method": ')
    with pytest.raises(ReportError, match=r"run\.json"):
        write_report(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "measurements.jsonl").write_text('{"stage": "4bit", "searcher": "random", "top1": 0.9, "costs": {}}\n')
    with pytest.raises(ReportError, match=r"measurements\.jsonl, line 1: 'arch' is missing"):
        write_report(tmp_path)
    line = {"stage": "4bit", "searcher": "r", "top1": 1, "arch": {}, "costs": {"macs": 1}}
    (tmp_path / "measurements.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(ReportError, match=r"record 1: 'bitops' is missing"):
        write_report(tmp_path)
    (tmp_path / "measurements.jsonl").write_text(json.dumps(line | {"costs": dict.fromkeys(COSTS, 1)}) + "\n")
    with pytest.raises(ReportError, match=r"run\.json: model\.config"):
        write_report(tmp_path)
    make_run_folder(tmp_path, measurements=3)
    member = {"name": "x", "stage": "4bit", "bits": 4, "arch": {"resolution": 9}, "costs": dict.fromkeys(COSTS, 1)}
    (tmp_path / "family.json").write_text(json.dumps([member | {"top1_validation": 1, "top1_test": 1}]))
    with pytest.raises(ReportError, match=r"stage 4bit: resolution = 9 is not allowed"):
        write_report(tmp_path)


def test_missing_matplotlib_is_named(run_folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ReportError, match=r'pip install "oncequant\[report\]"'):
        write_report(run_folder)


@pytest.mark.parametrize("values", [[0.99, 1.0], [0.1, 0.3], [0.5, 0.95, 0.98], [0.7], []])
def test_axis_has_ordered_ticks_inside_its_range(values):
    axis = top1_axis(values)
    heights = [height for height, _ in axis["ticks"]]
    assert heights == sorted(heights) and all(axis["low"] <= h <= axis["high"] for h in heights)
    assert all(axis["low"] < stretch(v) < axis["high"] for v in values)
    assert len(heights) >= 2
