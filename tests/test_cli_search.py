"""`oncequant search`: budgets are kept, and those that cannot be met are refused."""

import pytest
from commands import QUICK, SMALL, TRAINING, call, fails, model_of
from hypothesis import given
from hypothesis import strategies as st
from pictures import write_folder

from oncequant.cost import COSTS, Budget, readable
from oncequant.family import with_bits
from oncequant.files import read_json, read_lines
from oncequant.models import space_of


def test_search_under_budgets_keeps_them(digits_run, monkeypatch):
    space = space_of(with_bits(model_of(digits_run), 4))
    smallest = {name: cost(space.layers(space.smallest())) for name, cost in COSTS.items()}
    budgets = [f"bitops<={readable(1.5 * smallest['bitops'])}", f"params<={readable(1.3 * smallest['params'])}"]
    flags = [word for budget in budgets for word in ("--budget", budget)]
    call(monkeypatch, "search", digits_run, "--evaluations", "4", "--searcher", "random", *flags)
    chosen = [e for e in read_json(digits_run / "family.json") if "bitops" in e["name"]]
    assert {e["stage"] for e in chosen} == {"4bit", "2bit"}
    for entry in chosen:
        for budget in map(Budget.parse, budgets):
            assert entry["costs"][budget.cost.name] <= budget.limit


def test_bit_widths_too_large_for_a_budget_are_left_out(digits_run, monkeypatch, capsys):
    least = {}
    for bits in (4, 2):
        space = space_of(with_bits(model_of(digits_run), bits))
        least[bits] = COSTS["weight_bytes"](space.layers(space.smallest()))
    limit = round((least[4] + least[2]) / 2)
    call(monkeypatch, "search", digits_run, "--budget", f"weight_bytes<={limit}", "--evaluations", "6")
    assert "left out, since no subnet is within the budgets: 4 bits" in capsys.readouterr().out
    found = [entry for entry in read_json(digits_run / "family.json") if "weight_bytes" in entry["name"]]
    assert [entry["stage"] for entry in found] == ["2bit"] and found[0]["costs"]["weight_bytes"] <= limit
    message = fails(monkeypatch, capsys, "search", digits_run, "--budget", f"weight_bytes<={least[2] - 1:.0f}")
    assert f"the smallest weight_bytes of this search space is {least[2]:.0f}" in message


def test_impossible_budgets_are_refused_at_once_with_the_smallest_value(digits_run, monkeypatch, capsys):
    lines = len(read_lines(digits_run / "measurements.jsonl"))
    message = fails(monkeypatch, capsys, "search", digits_run, "--budget", "params<=10")
    space = space_of(with_bits(model_of(digits_run), 4))
    assert str(COSTS["params"](space.layers(space.smallest()))) in message
    assert len(read_lines(digits_run / "measurements.jsonl")) == lines


def test_run_refuses_impossible_budgets_before_training(tmp_path, monkeypatch, capsys):
    message = fails(monkeypatch, capsys, "run", "--run", tmp_path / "run", "--budget", "params<=10", *QUICK, *SMALL)
    assert "smallest params" in message
    assert not (tmp_path / "run").exists()


def test_partly_trained_runs_can_be_searched_from_anywhere(tmp_path, monkeypatch, capsys):
    source = write_folder(tmp_path / "images", mode="L")  # noise, so that there are mistakes
    monkeypatch.chdir(tmp_path)
    call(
        monkeypatch,
        "train",
        "--data",
        "images",
        "--run",
        tmp_path / "run",
        *TRAINING[:6],
        "--bit-schedule",
        "4",
        "2",
        *SMALL,
    )
    (tmp_path / "run" / "2bit.safetensors").unlink()
    monkeypatch.chdir("/")
    call(monkeypatch, "search", tmp_path / "run", "--evaluations", "3")
    assert {e["stage"] for e in read_json(tmp_path / "run" / "family.json")} == {"float", "4bit"}
    source.rename(tmp_path / "moved")
    call(monkeypatch, "search", tmp_path / "run", "--evaluations", "4", "--data", tmp_path / "moved")
    page = tmp_path / "run" / "report" / "index.html"
    call(monkeypatch, "report", tmp_path / "run")
    assert "The pictures cannot be shown: " in page.read_text()
    call(monkeypatch, "report", tmp_path / "run", "--data", tmp_path / "moved")
    assert "cannot be shown" not in page.read_text() and "data:image/png;base64" in page.read_text()
    assert "nowhere" in fails(monkeypatch, capsys, "report", tmp_path / "run", "--data", "nowhere")
    for more in ([tmp_path / "run"], ["--no-pictures"]):
        assert "error: --data: " in fails(monkeypatch, capsys, "report", tmp_path / "run", *more, "--data", "moved")


@pytest.mark.parametrize(
    "budget, named",
    [
        ("speed<=3", "speed<=3"),
        ("bitops<=1.2.3", "bitops<=1.2.3"),
        ("bitops<3", "bitops<3"),
        ("bitops<=", "bitops"),
        ("bitops<=3Q", "3Q"),
    ],
)
def test_malformed_budgets_are_refused_before_training(tmp_path, monkeypatch, capsys, budget, named):
    message = fails(monkeypatch, capsys, "run", "--run", tmp_path / "run", "--budget", budget)
    assert named in message and "weight_bytes" in message
    assert not (tmp_path / "run").exists()


@given(number=st.decimals(0, 999, places=3), suffix=st.sampled_from(["", "k", "M", "G"]))
def test_budgets_are_the_number_as_written(number, suffix):
    exact = number * {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}[suffix]
    budget = Budget.parse(f"weight_bytes<={number}{suffix}")
    assert budget.limit == float(exact) and Budget.parse(str(budget)) == budget
