"""What the report says of the network to take for a budget."""

import json

import pytest
from test_report import data_in, make_run_folder
from test_report_answers import write_synthetic

from oncequant.intervals import CONFIRMED, UNDECIDED, difference_on_images, share_interval
from oncequant.report import write_report
from oncequant.report.advice import advice
from oncequant.report.contents import read_contents


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run whose answers to the test images are kept, and its family tells their accuracies."""
    folder = make_run_folder(tmp_path_factory.mktemp("advice") / "run", measurements=30)
    made = write_synthetic(folder, 10, 360)
    entries = json.loads((folder / "family.json").read_text())
    entries = [e | {"top1_test": made[e["name"]].accuracy.top1} for e in entries]
    (folder / "family.json").write_text(json.dumps(entries))
    return folder


def test_steps_cost_more_and_are_better_on_validation_images(folder):
    run = read_contents(folder)
    for cost, steps in zip(("weight_bytes", "ram_bytes"), advice(run, ["weight_bytes", "ram_bytes"])["by_cost"]):
        taken = [run.family[step["network"]] for step in steps]
        assert len(taken) > 2
        for before, after in zip(taken, taken[1:]):
            assert before.costs[cost] <= after.costs[cost] and before.top1_validation < after.top1_validation
        for left_out in (one for one in run.family if one not in taken):  # another is as good and no more expensive
            assert any(
                one.costs[cost] <= left_out.costs[cost] and one.top1_validation >= left_out.top1_validation
                for one in taken
            )


def test_intervals_are_those_of_shares_and_of_differences_on_the_same_images(folder):
    run = read_contents(folder)
    first, second, *_ = advice(run, ["weight_bytes"])["by_cost"][0]
    one, other = (run.family[step["network"]] for step in (first, second))
    assert tuple(first["interval"]) == share_interval(one.top1_test, 360) and first["lead"] is None
    assert second["lead"] is None  # synthetic answers: each network has images of its own
    answers = run.answers[one.name][1]
    same = {name: (path, answers) for name, (path, _) in run.answers.items()}
    worse = answers.predicted.clone()
    worse[:90] = (answers.labels[:90] + 1) % 10
    same[one.name] = (same[one.name][0], type(answers)(answers.labels, worse, answers.probability, 10))
    run = type(run)(**{**vars(run), "answers": same})
    _, second, third, *_ = advice(run, ["weight_bytes"])["by_cost"][0]
    expected = difference_on_images((answers.labels == answers.predicted).numpy(), (answers.labels == worse).numpy())
    assert (second["lead"]["low"], second["lead"]["high"]) == (expected.low, expected.high)
    assert second["lead"]["verdict"] == CONFIRMED and third["lead"]["verdict"] == UNDECIDED
    assert third["lead"]["value"] == 0


def test_the_page_has_an_interval_of_every_measured_network(folder, tmp_path):
    data = data_in(write_report(folder, pictures=False))
    for point in data["points"]:
        assert point["interval"] == pytest.approx(share_interval(point["top1"], 360), abs=1e-5)
    assert data["advice"]["images"] == 360 and len(data["advice"]["by_cost"]) == len(data["costs"])
    run = json.loads((folder / "run.json").read_text())
    for name in ("family.json", "measurements.jsonl"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    del run["data"]["test"], run["data"]["validation"]
    (tmp_path / "run.json").write_text(json.dumps(run))
    data = data_in(write_report(tmp_path, pictures=False))
    assert data["advice"] is None and data["points"][0]["interval"] is None
