"""Tables of costs on the command line: budgets, fronts and DNAS's loss; checked before work, kept in the run folder."""

import json
import shutil
from dataclasses import replace

import pytest
from commands import DIGITS_TRAINING, QUICK, call, fails, model_of
from small_dnas import FAST, MODEL
from small_qfa import TINY as QFA_TINY
from small_qfa import trained_in
from test_cost_table import write_table

from oncequant import runs
from oncequant.cost import COSTS, Budget
from oncequant.cost_table import KEY, keep_table, layer_rows, table_cost
from oncequant.data import load_data
from oncequant.family import with_bits
from oncequant.files import read_json, read_lines
from oncequant.methods import dnas, qfa
from oncequant.models import PRESETS, space_of
from oncequant.report import write_report
from oncequant.run_folder import Run
from oncequant.tables import check_costs


def table_of(spaces, path):
    """A made-up table with the layers of all spaces."""
    rows = {tuple(row.values()): row for space in spaces for row in layer_rows(space)}
    return write_table(path, rows.values())


def oqat_spaces(run):
    return [space_of(with_bits(model_of(run), bits)) for bits in (4, 2)]


@pytest.fixture
def run(digits_run, tmp_path):
    return shutil.copytree(digits_run, tmp_path / "run", ignore=shutil.ignore_patterns("compare*"))


@pytest.fixture
def phone(run, tmp_path):
    return table_of(oqat_spaces(run), tmp_path / "phone.csv")


def limit_of(run, phone):
    """A budget that some networks keep and others do not."""
    cost = table_cost(phone)
    ends = [cost(space.layers(getattr(space, end)())) for space in oqat_spaces(run) for end in ("smallest", "largest")]
    return round((min(ends) + max(ends)) / 2, 2)


def test_oqat_searches_within_a_table_s_budget_and_the_run_keeps_it(run, phone, monkeypatch, capsys):
    limit = limit_of(run, phone)
    quick = "--evaluations", "4", "--searcher", "random"
    call(monkeypatch, "search", run, "--costs", phone, "--budget", f"phone<={limit}", *quick)
    assert "phone" in (shown := capsys.readouterr().out) and "(us)" in shown  # on two lines, perhaps
    name = str(Budget(COSTS["macs"], limit)).replace("macs<=", "phone")
    chosen = [member for member in read_json(run / "family.json") if member["name"].endswith(name)]
    assert {member["stage"] for member in chosen} == {"4bit", "2bit"}
    assert all(member["costs"]["phone"] <= limit for member in chosen)
    assert (run / "costs" / "phone.csv").read_bytes() == phone.read_bytes()
    phone.unlink()
    call(monkeypatch, "search", run, "--front", "phone", *quick)  # the kept one; older measurements get the cost
    costs = {member["name"]: member["costs"] for member in read_json(run / "family.json")}
    assert "phone" not in costs["float-max"] and costs["4bit-L"]["phone"] >= costs["4bit-S"]["phone"]
    call(monkeypatch, "info", run)
    shown = capsys.readouterr().out
    assert "phone" in shown and "–" in shown  # the float network has none
    call(monkeypatch, "evaluate", run, "smallest", "--stage", "2bit")
    assert json.loads(capsys.readouterr().out)["phone"] > 0
    page = write_report(run).read_text()
    assert '"phone (us)"' in page


def test_compare_at_budgets_of_a_table(run, phone, monkeypatch, capsys):
    small = "--deployments", "2", "--evaluations", "6"
    call(monkeypatch, "compare", run, *small, "--costs", phone, "--front", "phone", "--ways", "supernet")
    found = read_json(run / "compare.json")
    assert found["front"] == "phone" and {row["way"] for row in found["deployments"]} == {"supernet"}
    said = fails(monkeypatch, capsys, "compare", run, *small, "--front", "phone", "--ways", "hand-made")
    assert "hand-made: the table of phone lacks layers" in said
    assert "front macs: use bitops" in fails(monkeypatch, capsys, "compare", run, *small, "--front", "macs")


def test_a_run_with_a_table_trains_searches_and_reports(tmp_path, digits_run, monkeypatch):
    phone = table_of(oqat_spaces(digits_run), tmp_path / "phone.csv")
    folder = tmp_path / "new"
    limit = limit_of(digits_run, phone)
    options = [*DIGITS_TRAINING, "--evaluations", "3", "--searcher", "random"]
    call(monkeypatch, "run", "--run", folder, *options, "--costs", phone, "--budget", f"phone<={limit}")
    assert (folder / "costs" / "phone.csv").exists()
    found = [row for row in read_lines(folder / "measurements.jsonl") if row["stage"] != "float"]
    assert found and all(row["costs"]["phone"] <= limit for row in found)
    assert "phone" in next((folder / "report").glob("measurements.csv")).read_text().splitlines()[0]


def test_what_cannot_work_is_one_line_before_any_work(run, phone, tmp_path, monkeypatch, capsys):
    broken = tmp_path / "broken.csv"
    broken.write_text("role,us\nstem,1\n")
    rows, measured = layer_rows(oqat_spaces(run)[0]), len(read_lines(run / "measurements.jsonl"))
    other = write_table(tmp_path / "other.csv", rows)  # of 4 bits alone

    def refused(*arguments):
        return fails(monkeypatch, capsys, *arguments)

    assert "broken.csv: its header is role, us" in refused("search", run, "--costs", broken)
    said = refused("search", run, "--costs", other)
    assert said.startswith("error: ") and "other.csv lacks a layer: " in said and "W2 A2" in said
    assert "nowhere.csv is not a readable CSV" in refused("search", run, "--costs", tmp_path / "nowhere.csv")
    assert "COST one of macs" in refused("search", run, "--budget", "phone<=10")
    assert "unknown cost 'phone'" in refused("search", run, "--front", "phone")
    assert "budget phone<=1 cannot be met" in refused("search", run, "--costs", phone, "--budget", "phone<=1")
    assert len(read_lines(run / "measurements.jsonl")) == measured and not (run / "costs" / "other.csv").exists()
    keep_table(phone, run)
    phone.write_text(phone.read_text().replace("us\n", "ms\n"))
    assert "is another table than" in refused("search", run, "--costs", phone)
    assert "is another table than" in refused("search", run, "--costs", json_of(phone))
    twice = tmp_path / "elsewhere" / "phone.csv"
    twice.parent.mkdir()
    twice.write_text(phone.read_text())
    phone.write_text(phone.read_text() + "# of another day\n")
    fresh = tmp_path / "fresh"
    assert "is another table than" in refused("train", "--run", fresh, "--costs", phone, "--costs", twice)
    assert not fresh.exists()
    for command in ("run", "train"):
        assert "lacks a layer" in refused(
            command, "--run", fresh, "--costs", other, *(QUICK if command == "run" else ())
        )
    assert not fresh.exists()


def json_of(table):
    """The same table as JSON, of which the name is the same."""
    file = table.with_suffix(".json")
    rows = [dict(zip(KEY, key)) for key in (("stem", 1, 16, 3, 1, 8, 1, 8, 8),)]
    file.write_text(json.dumps({"unit": "us", "layers": [{**row, "cost": 1.0} for row in rows]}))
    return file


def test_qfa_predicts_within_a_table_s_budget(tmp_path):
    cfg, data, folder = trained_in(tmp_path / "run")
    run = Run(folder, QFA_TINY, data)
    phone = table_of(qfa.searched_spaces(cfg, QFA_TINY), tmp_path / "phone.csv")
    space, cost = qfa.searched_spaces(cfg, QFA_TINY)[0], table_cost(phone)
    limit = 1.3 * cost(space.layers(space.smallest()))
    quick = dict(evaluations=32, population=20, generations=4, front_members=2)
    chosen = runs.search_run(cfg, run, [f"phone<={limit:.2f}"], costs=[phone], **quick)
    assert chosen[-1].costs["phone"] <= limit + 0.01 and "phone" not in chosen[0].costs
    again = runs.search_run(cfg, run, front="phone", **quick)  # the whole front, by the kept table
    assert {member.name for member in again} <= {"float-max", "mixed-S", "mixed-M", "mixed-L"}
    assert read_json(folder / "predictor.json")["cost"] == "phone"


def test_dnas_saves_what_a_table_measures(tmp_path):
    data = load_data("digits", size=8, max_train=200)
    cfg = dnas.Config(**FAST, cost="phone")
    phone = table_of(dnas.searched_spaces(cfg, MODEL), tmp_path / "phone.csv")
    folder = tmp_path / "run"
    with pytest.raises(ValueError, match="unknown cost 'phone'"):
        check_costs(cfg, None, MODEL, folder, ())
    with pytest.raises(ValueError, match="cost qfa_mflops: use weight_bytes, bitops, or a table"):
        check_costs(replace(cfg, cost="qfa_mflops"), None, MODEL, folder, ())
    check_costs(cfg, None, MODEL, folder, [phone])
    keep_table(phone, folder)
    run = Run(folder, MODEL, data)
    dnas.train(cfg, run)
    last = [row for row in read_lines(folder / "metrics.jsonl") if "expected_phone" in row]
    assert last and last[-1]["expected_phone"] > 0
    chosen = {member.name: member for member in runs.search_run(cfg, run)}
    assert chosen["ME"].costs["phone"] <= chosen["MA"].costs["phone"] and "phone" not in chosen["float"].costs
    limit = chosen["ME"].costs["phone"]
    within = runs.search_run(cfg, run, [f"phone<={limit:.6f}"])
    assert within[-1].costs["phone"] <= limit + 1e-6


def test_cost_prints_what_a_table_says(tmp_path, monkeypatch, capsys):
    space = space_of(with_bits(replace(PRESETS["resnet-cifar"], edge_bits=8), 4))
    phone = write_table(tmp_path / "phone.csv", layer_rows(space))
    (tmp_path / "archs.jsonl").write_text(space.brief(space.smallest()).to_json() + "\n")
    command = "cost", tmp_path / "archs.jsonl", "--preset", "resnet-cifar", "--bits", "4", "--edge-bits", "8"
    call(monkeypatch, *command, "--costs", phone)
    assert json.loads(capsys.readouterr().out)["phone"] == table_cost(phone)(space.layers(space.smallest()))
    said = fails(monkeypatch, capsys, *command[:-3], "2", *command[-2:], "--costs", phone)
    assert "line 1: " in said and "lacks a layer" in said


def test_options_of_tables_are_where_budgets_are(monkeypatch, capsys):
    for command in (["run"], ["train", "dnas"], ["search"], ["compare"], ["cost"]):
        topic = "--help-search" if command[0] in ("run", "train") else "--help"
        with pytest.raises(SystemExit):
            call(monkeypatch, *command, topic)
        assert "--costs TABLE" in capsys.readouterr().out
