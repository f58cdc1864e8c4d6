from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_qfa import QUICK, TINY, digits, trained_in

from oncequant.answers import Accuracy
from oncequant.cost import COSTS, Budget
from oncequant.data import eval_batches
from oncequant.files import read_json
from oncequant.measure import Judge, measure
from oncequant.methods import qfa
from oncequant.quantizers.batchquant import BatchQuant
from oncequant.records import Measurement, Member, read_records
from oncequant.run_folder import Run
from oncequant.search import fronts
from oncequant.search.budget import BudgetError
from oncequant.search.predictor import fit_predictor, load_predictor
from oncequant.supernet_file import load_supernet, save_supernet


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return trained_in(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def searched(trained):
    cfg, data, folder = trained
    options = qfa.SearchOptions(evaluations=40, population=60, generations=20, front_members=8)
    return qfa.choose(cfg, options, Run(folder, TINY, data))


def test_a_search_hands_out_a_family_along_the_front(trained, searched):
    cfg, data, folder = trained
    names = [member.name for member in searched]
    assert names[0] == "float-max" and set(names[1:]) <= {"mixed-S", "mixed-M", "mixed-L"} and len(names) >= 2
    found = read_records(folder / "measurements.jsonl", Measurement)
    by = Counter(m.searcher for m in found)
    assert by["sample"] == 40 and by["predicted"] >= 1
    assert {"uniform 2 bits", "uniform 3 bits", "uniform 4 bits"} <= set(by)
    for m in found:
        if m.searcher.startswith("uniform"):
            bits = {value for name, value in m.arch.items() if name.endswith("_bits")}
            assert bits == {int(m.searcher.split()[1])}
    sample = {m.arch for m in found if m.searcher == "sample"}
    for member in searched[1:]:  # what was learned from is not predicted
        assert (member.top1_predicted is None) == (member.arch in sample)
        assert 0 <= (member.top1_predicted or 0) <= 1 and 0 <= member.top1_before_folding <= 1
    assert read_records(folder / "family.json", Member) == searched


def test_what_the_predictor_is_judged_by_it_has_not_seen(trained, searched):
    _, _, folder = trained
    found = read_records(folder / "measurements.jsonl", Measurement)
    sample = {m.arch for m in found if m.searcher == "sample"}
    unseen = [m.top1 for m in found if m.searcher.startswith(("predicted", "uniform")) and m.arch not in sample]
    assert [point["measured"] for point in read_json(folder / "predictor.json")["points"]] == unseen


def test_the_predictor_kept_has_learned_from_everything(trained, searched):
    cfg, data, folder = trained
    space = load_supernet(folder, "mixed").space
    kept, _ = load_predictor(folder / "predictor.safetensors", space)
    found = {m.arch: m.top1 for m in read_records(folder / "measurements.jsonl", Measurement) if m.stage == "mixed"}
    codes = np.array([space.encode(space.complete(arch)) for arch in found])
    again = fit_predictor(space, codes, np.array(list(found.values())), seed=cfg.seed)
    np.testing.assert_allclose(kept.accuracy(codes), again.accuracy(codes), atol=1e-6)
    less = fit_predictor(space, codes[:40], np.array(list(found.values()))[:40], seed=cfg.seed)
    assert np.abs(less.accuracy(codes) - again.accuracy(codes)).max() > 1e-4


def copied(trained, folder):
    """Another folder with the stages of a run."""
    for stage in qfa.stages(trained[0]):
        (folder / f"{stage}.safetensors").write_bytes((trained[2] / f"{stage}.safetensors").read_bytes())
    return folder


def test_only_the_predicted_front_is_stopped_early(trained, tmp_path, monkeypatch):
    cfg, data, _ = trained
    asked, original = {}, fronts.measure_codes

    def record(supernet, memory, codes, searcher, judge, stop_dominated=None):
        asked[searcher] = (len(codes), stop_dominated)
        original(supernet, memory, codes, searcher, judge, stop_dominated)

    monkeypatch.setattr(fronts, "measure_codes", record)
    options = qfa.SearchOptions(evaluations=30, population=40, generations=4, front="weight_bytes", front_members=3)
    qfa.choose(cfg, options, Run(copied(trained, tmp_path), TINY, data))
    assert asked.pop("predicted") == (3, "weight_bytes")
    assert {stop for _, stop in asked.values()} == {None} and len(asked) == 3
    (tmp_path / "whole").mkdir()
    qfa.choose(cfg, replace(options, front_members=0), Run(copied(trained, tmp_path / "whole"), TINY, data))
    assert asked["predicted"][0] > 3


def test_what_whole_zero_points_cost_is_reported(trained, tmp_path):
    cfg, data, _ = trained
    folder = copied(trained, tmp_path)
    net = load_supernet(folder, "mixed")
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, BatchQuant):
                module.offset.fill_(0.45)
    save_supernet(folder, "mixed", net)
    family = qfa.choose(cfg, qfa.SearchOptions(evaluations=12, searcher="random"), Run(folder, TINY, data))[1:]
    for member in family:
        arch, calibration = net.space.complete(member.arch), cfg.calibration(data)
        for key, fold in (("top1_validation", True), ("top1_before_folding", False)):
            top1 = measure(net, arch, calibration, eval_batches(data, data.validation), fold=fold).accuracy.top1
            assert getattr(member, key) == pytest.approx(top1), key
    assert any(member.top1_validation != member.top1_before_folding for member in family)


def test_more_evaluations_make_the_sample_grow_and_the_predictor_learn_again(trained, tmp_path):
    cfg, data, _ = trained
    folder, budget = copied(trained, tmp_path), Budget(COSTS["params"], 10**9)
    quick = qfa.SearchOptions(evaluations=30, population=8, generations=2)
    qfa.choose(cfg, quick, Run(folder, TINY, data))
    before, predictor = read_records(folder / "measurements.jsonl", Measurement), folder / "predictor.safetensors"
    with pytest.raises(ValueError, match="at least 30"):
        qfa.choose(cfg, replace(quick, evaluations=20, budgets=(budget,)), Run(folder, TINY, data))
    qfa.choose(cfg, replace(quick, evaluations=None, budgets=(budget,)), Run(folder, TINY, data))
    assert len([m for m in read_records(folder / "measurements.jsonl", Measurement) if m.searcher == "sample"]) == 30
    kept = predictor.read_bytes()
    qfa.choose(cfg, replace(quick, evaluations=36, budgets=(budget,)), Run(folder, TINY, data))
    after = read_records(folder / "measurements.jsonl", Measurement)
    assert after[: len(before)] == before and len([m for m in after if m.searcher == "sample"]) == 36
    assert predictor.read_bytes() != kept


def test_a_budget_is_answered_from_the_predictor(trained, searched):
    cfg, data, folder = trained
    before = read_records(folder / "measurements.jsonl", Measurement)
    costs = sorted(m.costs["bitops"] for m in before)
    budget = Budget(COSTS["bitops"], costs[len(costs) // 2])
    chosen = qfa.choose(cfg, qfa.SearchOptions(budgets=(budget,)), Run(folder, TINY, data))
    after = read_records(folder / "measurements.jsonl", Measurement)
    assert len(after) - len(before) <= fronts.MEASURED_UNDER_BUDGET
    assert all(m.searcher == "budget" and budget.limit >= m.costs["bitops"] for m in after[len(before) :])
    fitting = [m.top1 for m in after if m.costs["bitops"] <= budget.limit]
    assert chosen[-1].costs["bitops"] <= budget.limit and chosen[-1].top1_validation == max(fitting)
    kept = {member.name for member in read_records(folder / "family.json", Member)}
    assert {member.name for member in searched} | {chosen[-1].name} == kept


def test_a_budget_that_nothing_meets_is_refused_before_measuring(trained, tmp_path):
    cfg, data, folder = trained
    with pytest.raises(BudgetError, match="bitops<=10"):
        qfa.choose(cfg, qfa.SearchOptions(budgets=(Budget(COSTS["bitops"], 10),)), Run(folder, TINY, data))
    with pytest.raises(BudgetError):
        qfa.check(cfg, qfa.SearchOptions(budgets=(Budget(COSTS["weight_bytes"], 10),)), TINY)


def test_too_few_evaluations_are_refused_before_training():
    with pytest.raises(ValueError, match="at least 30 measured"):
        qfa.check(qfa.Config(), qfa.SearchOptions(evaluations=29), TINY)
    qfa.check(qfa.Config(), qfa.SearchOptions(evaluations=29, searcher="random"), TINY)


@pytest.mark.parametrize("space, kernels", [("architecture", (3, 5)), ("architecture", (3,)), ("precision", (3, 5))])
def test_restricted_spaces_are_searched(space, kernels, tmp_path):
    """One is so small that it is measured whole; one has no open bit-widths."""
    cfg, data = qfa.Config(**QUICK, space=space), digits()
    model = replace(TINY, kernel_sizes=kernels, depths=(1,), stage_widths=(16,), stage_strides=(2,), stage_se=(True,))
    model = replace(model, stage_hswish=(True,))
    qfa.train(cfg, Run(tmp_path, model, data))
    family = qfa.choose(cfg, qfa.SearchOptions(evaluations=30, population=8, generations=4), Run(tmp_path, model, data))
    found = read_records(tmp_path / "measurements.jsonl", Measurement)
    if space == "architecture":
        assert {m.searcher for m in found} == {"random"}
        assert len(found) == load_supernet(tmp_path, "mixed").space.size() == 4 * len(kernels)
    else:
        assert {"sample", "predicted", "uniform 2 bits"} <= {m.searcher for m in found}
    assert len(family) >= 2


def test_a_killed_search_measures_the_same_again(trained, tmp_path, monkeypatch):
    cfg, data, folder = trained
    for stage in qfa.stages(cfg):
        (tmp_path / f"{stage}.safetensors").write_bytes((folder / f"{stage}.safetensors").read_bytes())
    options = qfa.SearchOptions(evaluations=30, population=20, generations=4, front_members=3)
    for name in ("whole", "killed"):
        run = tmp_path / name
        run.mkdir()
        for stage in qfa.stages(cfg):
            (run / f"{stage}.safetensors").symlink_to(tmp_path / f"{stage}.safetensors")
    whole = qfa.choose(cfg, options, Run(tmp_path / "whole", TINY, data))
    wanted = (tmp_path / "whole" / "measurements.jsonl").read_text().splitlines()
    original, count = qfa.measure_codes.__globals__["calibrated_subnet"], [0]

    def killed(*args, **kwargs):
        count[0] += 1
        if count[0] in (7, 20, 33):
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setitem(qfa.measure_codes.__globals__, "calibrated_subnet", killed)
    for attempt in range(5):
        try:
            found = qfa.choose(cfg, options, Run(tmp_path / "killed", TINY, data))
            break
        except KeyboardInterrupt:
            assert attempt < 4
    assert count[0] > 20 and found == whole
    assert (tmp_path / "killed" / "measurements.jsonl").read_text().splitlines() == wanted


def test_the_sample_is_uniform_and_the_official_mixture_in_turn():
    cfg = qfa.Config()
    _, space = qfa.mixed_precision(cfg, TINY)
    codes = qfa.learning_codes(space, np.random.default_rng(0), 2000)
    assert len(np.unique(codes, axis=0)) == 2000
    archs = [space.decode(row) for row in codes]
    assert all(space.complete(arch) == arch for arch in archs)

    def share(condition):
        return sum(map(condition, archs)) / len(archs)

    def one_width(arch):
        return len({value for name, value in space.brief(arch).items() if name.endswith("_bits")}) == 1

    # half of them uniform, half of the mixture, in which some are equal and drawn again
    assert share(lambda arch: arch["resolution"] == 10) == pytest.approx(0.5 * 0.5 + 0.5 * (0.4 + 0.6 * 0.5), abs=0.04)
    assert 0.08 <= share(one_width) <= 0.16


@pytest.mark.parametrize("n", [30, 200, 500])
def test_a_sample_is_the_beginning_of_a_larger_one(n):
    _, space = qfa.mixed_precision(qfa.Config(), TINY)
    larger = qfa.learning_codes(space, np.random.default_rng(1), 500)
    assert (qfa.learning_codes(space, np.random.default_rng(1), n) == larger[:n]).all()


def test_dominated_candidates_are_given_up(trained, tmp_path, monkeypatch):
    """Validation in batches of 1: hopeless ones see only some of them, and nothing is noted."""
    cfg, data, folder = trained
    from oncequant.search import family as searching

    stop = searching._hopeless(to_beat=0.9, images=1000)
    assert stop(50, 250) and not stop(220, 250) and not stop(0, 1000)
    assert not searching._hopeless(0.0, 1000)(0, 999)
    net, space = load_supernet(folder, "mixed"), load_supernet(folder, "mixed").space
    memory = searching.MeasurementFile(tmp_path / "measurements.jsonl", "mixed")
    cheapest = space.smallest()
    list(memory.measured(space, lambda arch: Accuracy(1.0, 1.0), "x")([cheapest]))
    monkeypatch.setattr(searching, "eval_batches", lambda data, split, shuffled: eval_batches(data, split, 1, shuffled))
    seen = []
    monkeypatch.setattr(memory, "note", seen.append)
    codes = np.array([space.encode(space.largest())])
    searching.measure_codes(net, memory, codes, "y", Judge(data, cfg.calibration(data)), stop_dominated="bitops")
    assert seen == []
    searching.measure_codes(net, memory, codes, "y", Judge(data, cfg.calibration(data)))
    assert len(seen) == 1
