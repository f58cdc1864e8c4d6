"""One page about several runs."""

import json
import re
from pathlib import Path

import pytest
from commands import call, fails
from test_report import make_run_folder

from oncequant.files import read_json, write_json
from oncequant.records import Measurement, Member, read_records
from oncequant.report import ReportError, write_comparison
from oncequant.report.contents import read_contents
from oncequant.report.sections import page_data
from oncequant.report.several import combined_data, hypervolumes, run_names


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
            assert dict(zip(data["costs"], found["costs"])) == {title: costs[title] for title in data["costs"]}
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
    worse, best = hypervolumes([read_contents(runs[0]), read_contents(better)])
    assert set(worse) == {"bitops", "weight_bytes"} and all(0 <= worse[cost] < best[cost] <= 1 for cost in worse)


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
