"""One page about several runs."""

import json
import re
from pathlib import Path

import pytest
from commands import call, fails
from test_report import make_run_folder
from test_report_answers import write_synthetic

from oncequant.arch import Arch
from oncequant.cost import COSTS
from oncequant.cost_table import keep_table, layer_rows, write_table
from oncequant.family import with_bits
from oncequant.files import read_json, write_json
from oncequant.hand_made import hand_made
from oncequant.intervals import Interval
from oncequant.models import build_network, config_from_json
from oncequant.records import Measurement, Member, read_records
from oncequant.report import ReportError, write_comparison
from oncequant.report.contents import read_contents
from oncequant.report.effort import effort_of
from oncequant.report.sections import page_data
from oncequant.report.several import combined_data, run_names
from oncequant.report.volumes import chosen_volumes, measured_volumes, volume_costs
from oncequant.supernet_file import save_supernet


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return [make_run_folder(root / name, measurements=count, seed=seed)
            for seed, (name, count) in enumerate((("a/digits", 12), ("b/digits", 24), ("c/other", 12)))]  # fmt: skip


def test_every_network_of_every_run_is_on_the_page_as_it_was(runs):
    contents = [read_contents(run) for run in runs]
    data = combined_data(contents)
    json.dumps(data)
    at, family = 0, iter(data["family"])
    for name, one in zip(run_names(contents), contents):
        own = page_data(one)
        for point in own["points"]:
            found = data["points"][at]
            assert found["top1"] == point["top1"]
            assert data["stages"][found["stage"]]["name"] == f"{name}/{own['stages'][point['stage']]['name']}"
            assert [data["rows"][i] for i in found["layers"]] == [own["rows"][i] for i in point["layers"]]
            arch, before = (
                {choice: v for choice, v in zip(d["choices"], p["arch"]) if v is not None}
                for d, p in ((data, found), (own, point))
            )
            assert arch == before
            costs = dict(zip(own["costs"], point["costs"]))
            assert dict(zip(data["costs"], found["costs"])) == {title: costs.get(title) for title in data["costs"]}
            at += 1
        for item in own["family"]:
            assert next(family)["name"] == f"{name}/{item['name']}"
    assert at == len(data["points"])
    for cost, by_stage in enumerate(data["fronts"]):
        assert len(by_stage) == len(data["stages"])
        for stage, front in enumerate(by_stage):
            assert all(data["points"][i]["stage"] == stage for i in front)
            values = [data["points"][i]["costs"][cost] for i in front]
            assert values == sorted(values)


def test_runs_are_named_by_what_tells_them_apart(runs):
    assert run_names([read_contents(run) for run in runs]) == ["a/digits", "b/digits", "c/other"]
    assert run_names([read_contents(run) for run in runs[1:]]) == ["digits", "other"]
    with pytest.raises(ReportError, match="name every run once"):
        run_names([read_contents(runs[0]), read_contents(runs[0])])


def test_a_run_that_dominates_has_the_larger_volume(runs, tmp_path):
    better = make_run_folder(tmp_path / "better", measurements=12, seed=0)
    lines = [json.loads(line) for line in (better / "measurements.jsonl").read_text().splitlines()]
    for line in lines:
        line["top1"] = min(1, line["top1"] + 0.005)
    (better / "measurements.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    contents = [read_contents(runs[0]), read_contents(better)]
    names = [cost.name for cost in volume_costs(contents)]
    assert names == ["bitops", "weight_bytes", "ram_bytes"]
    for name in names:
        worse, best = measured_volumes(contents, name)
        assert 0 <= worse < best <= 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "All have the same validation and test images."),
        ({"digests": {"validation": "1", "test": "0"}}, "the validation images are not: compare test accuracies"),
        ({"digests": {"validation": "0", "test": "1"}}, "have different test images"),
        ({"classes": ["a", "b"]}, "their accuracies cannot be compared"),
    ],
)
def test_what_can_be_compared_is_said(changes, said, tmp_path):
    folders = [make_run_folder(tmp_path / name, measurements=6) for name in "ab"]
    for folder, more in zip(folders, ({}, changes)):
        info = read_json(folder / "run.json")
        info["data"] = {**info["data"], "digests": {"validation": "0", "test": "0"}, **more}
        write_json(folder / "run.json", info)
    assert said in combined_data([read_contents(folder) for folder in folders])["runs"]["note"]


def test_the_command_writes_page_picture_and_tables(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    call(monkeypatch, "report", *runs)
    assert "comparison: comparison/index.html" in capsys.readouterr().out
    page = Path("comparison/index.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", page) and "a/digits: 4 bit" in page
    assert {path.name for path in Path("comparison").iterdir()} == {
        "index.html",
        "pareto.png",
        "runs.csv",
        "volumes.csv",
        "family.csv",
    }
    members = sum(len(read_records(run / "family.json", Member)) for run in runs)
    assert len(Path("comparison/family.csv").read_text().splitlines()) == 1 + members
    first = Path("comparison/index.html").read_bytes()
    call(monkeypatch, "report", *runs, "--out", "again")
    assert Path("again/index.html").read_bytes() == first


def test_what_cannot_be_put_on_a_page_is_one_line(runs, tmp_path, monkeypatch, capsys):
    assert "name every run once" in fails(monkeypatch, capsys, "report", runs[0], runs[0])
    assert "is not a run folder" in fails(monkeypatch, capsys, "report", runs[0], tmp_path / "none")
    said = fails(monkeypatch, capsys, "report", *runs, "--out", runs[0])
    assert "needs a folder of its own" in said
    many = [make_run_folder(tmp_path / str(i), measurements=3) for i in range(9)]
    assert "9 runs: at most 8 can be told apart" in fails(monkeypatch, capsys, "report", *many)
    empty = make_run_folder(tmp_path / "empty", measurements=3)
    for name in ("measurements.jsonl", "family.json"):
        (empty / name).unlink()
    with pytest.raises(ReportError, match="no network has been measured yet"):
        combined_data([read_contents(empty)])
    assert read_records(runs[0] / "measurements.jsonl", Measurement)
    with pytest.raises(ReportError, match="is not a run folder"):
        write_comparison([tmp_path / "none"], tmp_path / "out")


def test_volumes_of_chosen_networks_have_intervals_if_answers_were_kept(runs, tmp_path):
    kept = make_run_folder(tmp_path / "kept", measurements=12)
    made = write_synthetic(kept, 10, 300)
    entries = read_json(kept / "family.json")
    write_json(kept / "family.json", [e | {"top1_test": made[e["name"]].accuracy.top1} for e in entries])
    contents = [read_contents(kept), read_contents(runs[0])]
    ((interval, none), (value, _)) = chosen_volumes(contents, "bitops")
    assert isinstance(interval, Interval) and none is None and isinstance(value, float)
    assert 0 <= interval.low < interval.value < interval.high <= 1
    alone = chosen_volumes([contents[0]], "bitops")[0][0]
    assert chosen_volumes([contents[0]], "bitops")[0][0] == alone  # the same each time
    table = combined_data(contents)["runs"]["tables"][1]
    cell = table["rows"][0][table["columns"].index("Chosen, BitOPs")]
    assert cell == interval.text(3) and " to " not in table["rows"][1][1]


def test_measured_latencies_are_an_axis_of_exported_networks(runs):
    data = combined_data([read_contents(run) for run in runs])
    column = data["costs"].index("Latency, onnx (ms)")
    shown = {item["name"]: item["costs"][column] for item in data["family"]}
    exports = {row["name"]: row["latency_ms"] for row in read_json(runs[1] / "exports.json")}
    assert {name: shown[f"b/digits/{name}"] for name in exports} == exports and shown["b/digits/float-max"] is None
    assert {item["costs"][column] for item in data["points"]} == {None}
    assert data["fronts"][column] == [[] for _ in data["stages"]]


def test_the_table_of_one_run_is_an_axis_of_all(runs, tmp_path):
    timed, contents = make_run_folder(tmp_path / "timed", measurements=12), read_contents(runs[0])
    keys = [row for stage in ("4bit", "3bit", "2bit") for row in layer_rows(contents.spaces[stage])]
    write_table(tmp_path / "board_us.csv", {tuple(row.values()): 1.5 for row in keys}, "us")
    keep_table(tmp_path / "board_us.csv", timed)
    for order in ((timed, runs[0]), (runs[0], timed)):
        data = combined_data([read_contents(run) for run in order])
        column = next(i for i, title in enumerate(data["costs"]) if "board_us" in title)
        for item in [*data["points"], *data["family"]]:
            floating = "float" in data["stages"][item["stage"]]["name"]
            assert item["costs"][column] == (None if floating else pytest.approx(1.5 * len(item["layers"])))
        assert any("board_us" in title for title in data["runs"]["tables"][1]["columns"])


def add_networks_by_hand(folder):
    """What `oncequant compare` leaves of two networks, one of which was deployed twice; the other's folder is gone."""
    model = config_from_json(read_json(folder / "run.json")["model"]["config"])
    small, large = hand_made(model, 4, COSTS["bitops"])[:2]
    where = folder / "compare" / "hand-made" / f"{'-'.join(map(str, small.widths))}-4bit-30s"
    where.mkdir(parents=True)
    save_supernet(where, "4bit", build_network(with_bits(small.model, 4)))
    rows = [
        dict(way=way, arch={f"stage{i}": width for i, width in enumerate(one.widths, 1)}, top1_validation=0.9,
             top1_test=0.88, images=1000, seconds=36.0, bitops=1.0, weight_bytes=1.0, budget=1.0)
        for way, one in (("hand-made", small), ("hand-made", small), ("hand-made", large), ("supernet", small))
    ]  # fmt: skip
    about = dict(bits=4, totals=[], hypervolumes={}, against_supernet={}, deployments=rows)
    write_json(folder / "compare.json", about)
    return small


def test_networks_made_by_hand_are_a_series_of_their_run(tmp_path):
    folder = make_run_folder(tmp_path / "run", measurements=12)
    small = add_networks_by_hand(folder)
    run = read_contents(folder)
    (member,) = run.by_hand
    assert member.costs["weight_bytes"] == small.cost(COSTS["weight_bytes"]) and member.top1_test == 0.88
    data = combined_data([run])
    item = data["family"][-1]
    assert item["name"].startswith("run/by-hand-") and data["stages"][item["stage"]]["label"] == "run: by-hand"
    assert [data["rows"][i][0] for i in item["layers"]] == list(small.space.layers(small.arch))
    assert Arch(zip(data["choices"], item["arch"]))["resolution"] == small.arch["resolution"]
    own, by_hand = data["runs"]["tables"][0]["rows"]
    columns = data["runs"]["tables"][0]["columns"]
    assert by_hand[0] == "run, by hand" and by_hand[columns.index("Training images seen")] == "2,000"
    assert by_hand[columns.index("Hours by the clock")] == "0.020"
    assert not any("by-hand" in stage["name"] for stage in page_data(run)["stages"])  # the report has its own section


def test_effort_counts_images_and_hours_of_all_folders(tmp_path):
    folder = make_run_folder(tmp_path / "run", measurements=3)
    for number, where in enumerate((folder, folder / "samples" / "0", folder / "compare" / "uniform" / "x")):
        where.mkdir(parents=True, exist_ok=True)
        rows = [dict(stage="a", step=s, steps=2, loss=1.0, images=100 * s + number, time_s=3600.0 * s) for s in (1, 2)]
        (where / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    info = read_json(folder / "run.json")
    write_json(folder / "run.json", info | {"device": "Some CPU, 2 threads", "processes": 3})
    effort = effort_of(read_contents(folder))
    assert effort.images == 200 + 201 and effort.seconds == 4 * 3600 and effort.core_hours == 4 * 6
    write_json(folder / "run.json", info | {"device": "Some GPU"})
    assert effort_of(read_contents(folder)).core_hours is None
