"""`--metric`: what networks are chosen by. The two metrics share the file of measurements and are not mixed."""

from dataclasses import replace

import numpy as np
import pytest
from commands import fails
from small_dnas import FAST
from small_dnas import MODEL as RESNET
from small_qfa import TINY, trained_in
from small_spaces import NANO

import oncequant as oq
from oncequant.answers import Accuracy
from oncequant.arch import Arch
from oncequant.cost import COSTS, Budget
from oncequant.data import load_data
from oncequant.files import read_json
from oncequant.methods import METHODS, dnas
from oncequant.records import Measurement, Sample, append_record, read_records, write_records
from oncequant.run_folder import Run
from oncequant.search.finished import best_within, most_accurate_and_efficient, trained_samples
from oncequant.search.measurements import MeasurementFile, all_costs
from oncequant.search.pareto import best_under, spread
from oncequant.search.predictor import fit_predictor, load_predictor, metric_of, quality, save_predictor


def measurement(arch, top1, balanced):
    return Measurement(NANO.brief(arch), top1, all_costs(NANO, arch), "4bit", "test", balanced)


def test_fronts_and_winners_follow_the_metric():
    small, large = NANO.smallest(), NANO.largest()
    found = [measurement(small, 0.8, 0.7), measurement(large, 0.9, 0.6)]
    assert best_under(found, [], NANO) is found[1] and best_under(found, [], NANO, "balanced") is found[0]
    assert spread(found, 3) == found and spread(found, 3, metric="balanced") == found[:1]


def test_measurements_of_older_versions_are_measured_again_for_balanced_accuracy(tmp_path):
    path, arch, calls = tmp_path / "measurements.jsonl", NANO.largest(), []
    append_record(path, measurement(arch, 0.5, None))

    def measure(arch):
        calls.append(arch)
        return Accuracy(0.5, 0.25)

    assert list(MeasurementFile(path, "4bit").measured(NANO, measure, "test")([arch])) == [0.5] and not calls
    balanced = MeasurementFile(path, "4bit", metric="balanced")
    assert balanced.read() == [] and balanced.best_within("macs", 1e12) == 0
    assert list(balanced.measured(NANO, measure, "test")([arch])) == [0.25] and len(calls) == 1
    for metric, value in (("top1", 0.5), ("balanced", 0.25)):  # and now both are known, once
        memory = MeasurementFile(path, "4bit", metric=metric)
        assert list(memory.measured(NANO, measure, "other")([arch])) == [value] and len(calls) == 1
        assert memory.best_within("macs", 1e12) == value
        assert [(m.searcher, m.top1, m.balanced) for m in memory.read()] == [("test", 0.5, 0.25), ("other", 0.5, 0.25)]


def test_samples_are_chosen_by_the_metric(tmp_path):
    rows = [
        Sample("samples/0/network", Arch(NANO.brief(NANO.smallest())), 0.8, dict(weight_bytes=10), 0.7),
        Sample("samples/1/network", Arch(NANO.brief(NANO.largest())), 0.9, dict(weight_bytes=20), 0.6),
    ]
    assert best_within(rows, [], NANO) is rows[1] and best_within(rows, [], NANO, "balanced") is rows[0]
    found = most_accurate_and_efficient(rows, "weight_bytes", 0.9, 0.01, "balanced")
    assert found == {"MA": rows[0], "ME": rows[0]}
    write_records(tmp_path / "samples.json", [replace(rows[0], balanced_validation=None)])  # of an older version
    assert trained_samples(tmp_path, NANO, "top1")[0].top1_validation == 0.8
    with pytest.raises(OSError, match="samples.json has no balanced accuracies: `oncequant train` again"):
        trained_samples(tmp_path, NANO, "balanced")


def test_a_predictor_says_which_accuracy_it_predicts(tmp_path):
    codes = NANO.sample_codes(np.random.default_rng(0), 40)
    accuracy = np.linspace(0.5, 0.9, 40)
    predictor = fit_predictor(NANO, codes, accuracy, seed=0, metric="balanced")
    path = tmp_path / "predictor.safetensors"
    assert metric_of(path) is None
    save_predictor(path, predictor, quality(NANO, codes, accuracy, seed=0))
    assert metric_of(path) == "balanced" and load_predictor(path, NANO)[0].metric == "balanced"


def imbalanced(seed=1):
    """Grey pictures of three classes, 320, 100 and 60, that are hard to tell apart."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1, 2], [320, 100, 60])
    return [(rng.integers(0, 226, (8, 8), dtype=np.uint8) + np.uint8(15 * label), int(label)) for label in labels]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = oq.oqat.Config(
        bit_schedule=(4,), epochs=1, float_epochs=1, min_steps=30, batch_size=32, calibration_images=64, seed=2
    )
    folder = tmp_path_factory.mktemp("imbalanced") / "run"
    made = oq.new_run(config, (imbalanced(), None, None), folder, preset="resnet-nano", width=0.5, resolutions=[6, 8])
    oq.train_run(config, made)
    return config, made


def test_balanced_accuracy_changes_what_is_chosen(run):
    config, made = run
    by = {}
    for metric in ("top1", "balanced"):
        found = oq.search_run(config, made, metric=metric, evaluations=16, searcher="random")
        by[metric] = {member.name: member for member in found}
        assert all(member.metric == metric for member in found)
    measured = read_records(made.folder / "measurements.jsonl", Measurement)
    assert len(measured) == len({m.arch for m in measured})  # the second search measures nothing
    for metric, members in by.items():
        best = max(m.accuracy(metric) for m in measured)
        assert getattr(members["4bit-L"], f"{metric}_validation") == best
    assert by["top1"]["4bit-L"].arch != by["balanced"]["4bit-L"].arch
    under = {}
    for metric in by:
        (_, under[metric]) = oq.search_run(config, made, "macs<=1G", metric=metric, evaluations=16, searcher="random")
    assert {metric: member.arch for metric, member in under.items()} == {m: by[m]["4bit-L"].arch for m in by}


@pytest.mark.parametrize("words", [["run"], ["run", "qfa"], ["run", "dnas"], ["search", "RUN"]], ids=" ".join)
def test_other_metrics_are_refused(words, monkeypatch, capsys):
    assert "--metric f1: use top1, balanced" in fails(monkeypatch, capsys, *words, "--metric", "f1", status=2)


@pytest.mark.parametrize("method", METHODS)
def test_other_metrics_are_refused_in_python(method):
    with pytest.raises(ValueError, match="metric 'f1': use one of top1, balanced"):
        METHODS[method].SearchOptions(metric="f1")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    return trained_in(tmp_path_factory.mktemp("qfa"))


def test_the_predictor_learns_the_metric_that_is_asked_for(mixed):
    cfg, data, folder = mixed
    run, quick = Run(folder, TINY, data), dict(evaluations=30, population=12, generations=3, front_members=4)
    family = METHODS["qfa"].choose(cfg, METHODS["qfa"].SearchOptions(metric="balanced", **quick), run)
    assert metric_of(folder / "predictor.safetensors") == "balanced"
    assert all(member.top1_predicted is None and member.metric == "balanced" for member in family)
    found = [m for m in read_records(folder / "measurements.jsonl", Measurement) if m.stage == "mixed"]
    largest = max(family[1:], key=lambda member: member.balanced_validation)
    assert largest.balanced_validation == max(m.balanced for m in found)
    about, unseen = read_json(folder / "predictor.json"), {m.arch for m in found if m.searcher == "sample"}
    assert about["metric"] == "balanced"
    fronts = [m for m in found if m.searcher != "sample" and m.arch not in unseen]
    assert [point["measured"] for point in about["points"]] == [m.balanced for m in fronts]
    # by the other metric the predictor learns again, from the subnets that are measured already
    budgets = (Budget(COSTS["params"], 10**9),)
    METHODS["qfa"].choose(cfg, METHODS["qfa"].SearchOptions(budgets=budgets, **quick), run)
    assert metric_of(folder / "predictor.safetensors") == "top1"
    again = [m for m in read_records(folder / "measurements.jsonl", Measurement) if m.searcher == "sample"]
    assert again == [m for m in found if m.searcher == "sample"]


def test_dnas_chooses_by_the_metric(tmp_path):
    data = load_data((imbalanced(), None, None), size=8)
    cfg, run = dnas.Config(**{**FAST, "samples": 3}), Run(tmp_path, replace(RESNET, num_classes=3), data)
    dnas.train(cfg, run)
    samples = read_records(tmp_path / "samples.json", Sample)
    for metric in ("top1", "balanced"):
        found = {member.name: member for member in dnas.choose(cfg, dnas.SearchOptions(metric=metric), run)}
        assert getattr(found["MA"], f"{metric}_validation") == max(sample.accuracy(metric) for sample in samples)
        assert found["MA"].metric == metric and found["MA"].balanced_test is not None
