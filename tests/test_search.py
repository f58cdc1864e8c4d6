import functools
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oncequant.arch import Arch
from oncequant.cost import COSTS, Budget, bitops, macs
from oncequant.models.mobilenet_v3 import PRESETS, mobilenet_v3_space, with_bits
from oncequant.search import SEARCHERS
from oncequant.search.budget import (
    BudgetError,
    check_reachable,
    cost_batch,
    covering_codes,
    feasible_by_growth,
    feasible_codes,
    limit_codes,
    within,
)
from oncequant.search.measurements import Measurement, MeasurementFile, all_costs, read_measurements
from oncequant.search.pareto import best_under, hypervolume, pareto_front, spread

NANO = mobilenet_v3_space(with_bits(PRESETS["nano"], 4))
MIXED = mobilenet_v3_space(replace(PRESETS["nano"], weight_bits=(2, 3, 4), act_bits=(2, 4, 8), edge_bits=8, se_bits=8))
IMAGENET = mobilenet_v3_space(with_bits(PRESETS["imagenet"], 4))
# 216 architectures: few enough to know the optimum
SMALL = NANO.restrict(
    {f"stage{s}.depth": 1 for s in (1, 2, 3)} | {"stage1.block1.kernel_size": 3, "stage1.block1.expand_ratio": (2, 4)}
)
ALL_SMALL = SMALL.canonical(np.array(list(itertools.product(*map(range, SMALL.cardinalities)))))
ONE_POINT = NANO.restrict(NANO.smallest())


def one_by_one(search):
    """A searcher that takes the top-1 of one architecture."""
    return lambda space, top1, **options: search(space, lambda archs: map(top1, archs), **options)


SINGLE = {name: one_by_one(search) for name, search in SEARCHERS.items()}
all_searchers = pytest.mark.parametrize("search", SINGLE.values(), ids=SINGLE)


def budget(space, share, cost="bitops"):
    """A budget at a share (0 to 1) of the way from the smallest to the largest architecture, in log cost."""
    low, high = (COSTS[cost](space.layers(arch)) for arch in (space.smallest(), space.largest()))
    return Budget(cost, low * (high / low) ** share)


class SyntheticAccuracy:
    """Top-1 of architectures that nobody trained.

    log error = power law in MACs + a preference per choice, partly depending on the size + interactions of pairs of
    choices + noise per architecture (the finite validation set). At equal cost, errors differ by about 12 %.
    """

    def __init__(self, space, seed):
        rng = np.random.default_rng([2010, 4354, seed])
        genes = len(space.free)
        per_choice = 0.1 / np.sqrt(max(1, genes))
        self.space = space
        self.preference, self.drift = (
            [per_choice * (p - p.mean()) for p in map(rng.normal, np.zeros(genes), np.ones(genes), space.cardinalities)]
            for _ in range(2)
        )
        self.pairs = [tuple(rng.choice(genes, 2, replace=False)) for _ in range(genes if genes > 1 else 0)]
        shapes = [(space.cardinalities[i], space.cardinalities[j]) for i, j in self.pairs]
        self.interaction = [per_choice / 2 * rng.normal(size=shape) for shape in shapes]
        self.noise_phase = rng.uniform(1, 1000, size=genes)
        self.ends = [np.log(macs(space.layers(arch))) for arch in (space.smallest(), space.largest())]

    def error(self, codes):
        log_macs = np.log(cost_batch(self.space, "macs", codes)) - self.ends[0]
        position = 2 * log_macs / max(self.ends[1] - self.ends[0], 1e-9) - 1
        log_error = np.log(0.2) - 0.4 * log_macs
        for column, (preference, drift) in enumerate(zip(self.preference, self.drift)):
            log_error = log_error + preference[codes[:, column]] + position * drift[codes[:, column]]
        for (i, j), table in zip(self.pairs, self.interaction):
            log_error = log_error + table[codes[:, i], codes[:, j]]
        noise = np.sin(1e4 * np.sin(codes @ self.noise_phase))  # a hash: deterministic, and unrelated for neighbours
        return np.exp(log_error + 0.03 * noise)

    def __call__(self, arch):
        return 1 - self.error(self.space.encode(arch)[None])[0]


# -- every searcher keeps these promises

CASES = {
    "no budget": (NANO, ()),
    "one budget": (NANO, (budget(NANO, 0.5),)),
    "two budgets": (NANO, (budget(NANO, 0.7), budget(NANO, 0.3, "weight_bytes"))),
    "tight, large space": (IMAGENET, (budget(IMAGENET, 0.05),)),
    "mixed precision": (MIXED, (budget(MIXED, 0.4),)),
}


@all_searchers
@pytest.mark.parametrize("case", CASES)
def test_measures_exactly_the_wanted_number_of_different_architectures_within_the_budgets(search, case):
    space, budgets = CASES[case]
    asked, progress = [], []

    def measure(arch):
        asked.append(arch)
        return accuracy(arch)

    accuracy = SyntheticAccuracy(space, 0)
    found = search(
        space, measure, budgets=budgets, evaluations=30, seed=0, progress=lambda *args: progress.append(args)
    )
    assert [trial.arch for trial in found] == asked
    assert [trial.top1 for trial in found] == [accuracy(arch) for arch in asked]
    assert len({space.brief(arch) for arch in asked}) == 30
    for arch in asked:
        assert space.complete(arch) == arch
        assert all(b.holds(space.layers(arch)) for b in budgets)
    assert progress == [(done, 30) for done in range(1, 31)]


@all_searchers
def test_depends_on_the_seed_alone(search):
    run = functools.partial(search, NANO, SyntheticAccuracy(NANO, 0), evaluations=40, budgets=[budget(NANO, 0.6)])
    before = np.random.get_state()
    first = run(seed=1)
    np.random.seed(7)
    assert run(seed=1) == first
    assert run(seed=2) != first
    np.random.set_state(before)
    run(seed=1)
    assert str(np.random.get_state()) == str(before)


@all_searchers
def test_ends_when_every_architecture_is_measured(search):
    assert [t.arch for t in search(ONE_POINT, lambda arch: 0.5, evaluations=3, seed=0)] == [NANO.smallest()]

    only_smallest = Budget("bitops", bitops(NANO.layers(NANO.smallest())))
    found = search(NANO, lambda arch: 0.5, budgets=[only_smallest], evaluations=3, seed=0)
    assert [t.arch for t in found] == [NANO.smallest()]

    tight = [budget(SMALL, 0.1)]
    fitting = {row.tobytes() for row in ALL_SMALL[within(SMALL, tight, ALL_SMALL)]}
    assert 1 < len(fitting) < 60
    for budgets, wanted in ((tight, fitting), ((), {row.tobytes() for row in ALL_SMALL})):
        found = search(SMALL, SyntheticAccuracy(SMALL, 0), budgets=budgets, evaluations=len(wanted) + 5, seed=0)
        assert len(found) == len(wanted) and {SMALL.encode(t.arch).tobytes() for t in found} == wanted
        most = search(SMALL, SyntheticAccuracy(SMALL, 0), budgets=budgets, evaluations=len(wanted) - 1, seed=0)
        assert len({t.arch for t in most}) == len(wanted) - 1


@all_searchers
@pytest.mark.parametrize("evaluations", [1, 2, 7])
@pytest.mark.parametrize("budgets", [(), (budget(NANO, 0.5),)], ids=["free", "budget"])
def test_few_evaluations_and_equal_accuracies(search, evaluations, budgets):
    assert len(search(NANO, lambda arch: 1.0, budgets=budgets, evaluations=evaluations, seed=3)) == evaluations


@all_searchers
def test_refuses_impossible_requests_before_measuring(search):
    run = functools.partial(search, NANO, lambda arch: pytest.fail("measured"), seed=0)
    with pytest.raises(BudgetError, match=r"bitops<=1k .*smallest bitops"):
        run(evaluations=5, budgets=[Budget("bitops", 1000)])
    with pytest.raises(ValueError, match="joules.*bitops"):
        run(evaluations=5, cost="joules")
    with pytest.raises(ValueError, match="at least one"):
        run(evaluations=0)


@pytest.mark.parametrize("name", SEARCHERS)
@pytest.mark.parametrize("killed_at", [1, 17, 40])
def test_resumes_after_a_kill(name, killed_at, tmp_path):
    budgets, accuracy = [budget(NANO, 0.6)], SyntheticAccuracy(NANO, 0)
    uninterrupted = SINGLE[name](NANO, accuracy, budgets=budgets, evaluations=40, seed=5)
    calls = 0

    def measure(arch):
        nonlocal calls
        calls += 1
        if calls == killed_at:
            raise KeyboardInterrupt
        return accuracy(arch)

    def run():
        file = MeasurementFile(tmp_path / "run" / "measurements.jsonl", "4bit")
        return SEARCHERS[name](NANO, file.measured(NANO, measure, "it"), budgets=budgets, evaluations=40, seed=5)

    with pytest.raises(KeyboardInterrupt):
        run()
    assert run() == uninterrupted
    assert calls == 40 + 1  # the interrupted measurement is the only one repeated
    written = read_measurements(tmp_path / "run" / "measurements.jsonl")
    assert [(NANO.complete(m.arch), m.top1) for m in written] == uninterrupted


# -- and finds good architectures


@all_searchers
def test_finds_the_optimum_of_a_small_space(search):
    for seed in range(3):
        accuracy, limit = SyntheticAccuracy(SMALL, seed), budget(SMALL, 0.6)
        errors = accuracy.error(ALL_SMALL[within(SMALL, [limit], ALL_SMALL)])
        # random search has to try everything
        evaluations = len(errors) if search is SINGLE["random"] else len(errors) // 2
        found = search(SMALL, accuracy, budgets=[limit], evaluations=evaluations, seed=seed)
        assert 1 - max(trial.top1 for trial in found) == pytest.approx(errors.min(), rel=0.01)


SEEDS, EVALUATIONS = range(5), 100


@functools.cache
def quality(name):
    """Mean over seeds: hypervolume without a budget, log error of the best under a budget. Each in its natural unit."""
    search, volumes, best = SINGLE[name], [], []
    low, high = (np.log(bitops(NANO.layers(arch))) for arch in (NANO.smallest(), NANO.largest()))
    for seed in SEEDS:
        accuracy = SyntheticAccuracy(NANO, seed)
        found = search(NANO, accuracy, evaluations=EVALUATIONS, seed=seed)
        log_costs = np.log([bitops(NANO.layers(t.arch)) for t in found])
        errors = np.array([1 - t.top1 for t in found])
        points = np.column_stack([np.log(errors / 0.2), (log_costs - low) / (high - low)])
        volumes.append(hypervolume(points, (0.3, 1.05)))
        found = search(NANO, accuracy, budgets=[budget(NANO, 0.6)], evaluations=EVALUATIONS, seed=seed)
        best.append(np.log(min(1 - t.top1 for t in found)))
    return np.mean(volumes), np.mean(best)


@pytest.mark.parametrize("name", ["coarse_to_fine", "nsga2"])
def test_beats_random_search(name):
    (volume, best), (random_volume, random_best) = quality(name), quality("random")
    assert volume > 1.04 * random_volume
    assert best < random_best - 0.02  # 2 % fewer errors at the same budget


# -- budgets


@pytest.mark.parametrize("space", [NANO, MIXED, IMAGENET], ids=["nano", "nano mixed", "imagenet"])
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_every_cost_grows_with_every_choice(space, seed):
    codes = space.sample_codes(np.random.default_rng(seed), 1)
    larger = np.repeat(codes, len(space.free), axis=0) + np.eye(len(space.free), dtype=np.int64)
    larger = space.canonical(larger[(larger < space.cardinalities).all(axis=1)])
    same_resolution = larger[:, space.free.index("resolution")] == codes[:, space.free.index("resolution")]
    for cost in COSTS:
        grows = cost_batch(space, cost, larger) >= cost_batch(space, cost, codes)
        assert (grows | ~same_resolution if cost == "qfa_mflops" else grows).all(), cost
        assert cost_batch(space, cost, codes) >= COSTS[cost](space.layers(space.smallest())), cost


def test_unreachable_budget_names_the_smallest_reachable_value():
    least = COSTS["weight_bytes"](NANO.layers(NANO.smallest()))
    check_reachable(NANO, [Budget("weight_bytes", least), Budget("bitops", 1e12)])
    with pytest.raises(BudgetError, match=f"weight_bytes<=.* smallest weight_bytes .* is {least:.15g}$"):
        check_reachable(NANO, [Budget("bitops", 1e12), Budget("weight_bytes", least - 1)])


@settings(max_examples=15, deadline=None)
@given(shares=st.tuples(st.floats(0, 1.1), st.floats(0, 1.1)), seed=st.integers(0, 999), n=st.integers(0, 20))
def test_drawn_architectures_keep_all_budgets(shares, seed, n):
    budgets = [budget(MIXED, shares[0]), budget(MIXED, shares[1], "weight_bytes")]
    for draw in (feasible_codes, limit_codes, functools.partial(covering_codes, cost="bitops")):
        codes = draw(MIXED, budgets, rng=np.random.default_rng(seed), n=max(n, 1))
        assert codes.shape == (max(n, 1), len(MIXED.free)) and within(MIXED, budgets, codes).all()
        assert (MIXED.canonical(codes) == codes).all()


def test_covering_architectures_span_the_cost_range():
    codes = covering_codes(NANO, (), "bitops", np.random.default_rng(0), 20)
    log_cost = np.log(cost_batch(NANO, "bitops", codes))
    ends = [np.log(bitops(NANO.layers(arch))) for arch in (NANO.smallest(), NANO.largest())]
    assert np.histogram(log_cost, bins=8, range=ends)[0].min() >= 1
    assert [log_cost.min(), log_cost.max()] == pytest.approx(ends)


@settings(max_examples=8, deadline=None)
@given(share=st.floats(0, 1.1))
def test_growth_finds_every_feasible_architecture(share):
    budgets = [budget(SMALL, share), budget(SMALL, 0.8, "weight_bytes")]
    grown = {row.tobytes() for row in feasible_by_growth(SMALL, budgets, 10**6)}
    assert grown == {row.tobytes() for row in ALL_SMALL[within(SMALL, budgets, ALL_SMALL)]}


# -- Pareto fronts


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 4).flatmap(lambda m: st.lists(st.tuples(*[st.integers(0, 6)] * m), max_size=40)))
def test_pareto_front_equals_brute_force(points):
    def dominated(p):
        return any(all(a <= b for a, b in zip(q, p)) and q != p for q in points)

    array = np.array(points, dtype=float).reshape(len(points), len(points[0]) if points else 2)
    indices = pareto_front(array)
    assert [points[i] for i in indices] == sorted({p for p in points if not dominated(p)})
    assert all(points.index(points[i]) == i for i in indices)  # of equal points the first


@pytest.mark.parametrize("front_only", [False, True])
def test_pareto_front_of_many_points(front_only):
    x = np.random.default_rng(0).random((100_000, 2))
    if front_only:
        x[:, 1] = 1 - x[:, 0]
    indices = pareto_front(x)  # would need 10^10 comparisons by brute force
    assert len(indices) == 100_000 if front_only else 5 < len(indices) < 50


def test_hypervolume():
    assert hypervolume(np.array([[0.5, 0.5]]), (1, 1)) == pytest.approx(0.25)
    assert hypervolume(np.array([[0.5, 0.5], [0.25, 0.75], [0.6, 0.6], [2, 0]]), (1, 1)) == pytest.approx(0.3125)
    assert hypervolume(np.empty((0, 2)), (1, 1)) == 0
    assert hypervolume(np.array([[3.0, 3.0]]), (1, 1)) == 0


def measurement(arch, top1, **costs):
    return Measurement(NANO.brief(arch), top1, costs or all_costs(NANO, arch), "4bit", "test")


def test_spread_takes_the_ends_and_even_steps_of_log_cost():
    arch = NANO.smallest()
    front = [measurement(arch, 0.5 + 0.05 * i, bitops=2.0**i) for i in range(9)]
    everything = [front[4], measurement(arch, 0.4, bitops=20.0), *front[:4], *front[5:]]
    assert spread(everything, 3) == [front[0], front[4], front[8]]
    assert spread(everything, 5) == front[::2]
    assert spread(everything, 1) == [front[8]]
    assert spread(everything, 20) == front
    assert spread([], 3) == []
    crowded = [measurement(arch, 0.5 + 0.1 * i, bitops=c) for i, c in enumerate((1.0, 1.1, 1.2, 1000.0))]
    assert spread(crowded, 3) == [crowded[0], crowded[2], crowded[3]]


def test_best_under_budgets():
    small, large = NANO.smallest(), NANO.largest()
    middle = small.replace(resolution=max(NANO.choices["resolution"]))
    found = [measurement(large, 0.9), measurement(middle, 0.8), measurement(small, 0.8)]
    assert best_under(found, [], NANO) is found[0]
    assert best_under(found, [budget(NANO, 0.9)], NANO) is found[2]  # as accurate as the middle one, fewer BitOPs
    with pytest.raises(BudgetError, match="none of 1 .*bitops<="):
        best_under(found[:1], [budget(NANO, 0.5)], NANO)


# -- the file


def test_each_architecture_is_measured_once_and_every_searcher_is_credited(tmp_path):
    path, calls = tmp_path / "measurements.jsonl", []
    rng = np.random.default_rng(0)
    archs = [NANO.sample(rng) for _ in range(3)]

    def measure(arch):
        calls.append(arch)
        return 0.25 * len(calls)

    first = MeasurementFile(path, "4bit").measured(NANO, measure, "first")
    values = list(first(archs))
    assert list(first(archs)) == values == [0.25, 0.5, 0.75] and len(calls) == 3
    reread = MeasurementFile(path, "4bit")
    second = reread.measured(NANO, measure, "second")
    assert list(second([archs[1], archs[1]])) == [0.5, 0.5] and len(calls) == 3
    other_stage = MeasurementFile(path, "2bit").measured(NANO, measure, "first")
    assert list(other_stage(archs[:1])) == [1.0] and len(calls) == 4

    written = read_measurements(path)
    assert [(m.searcher, m.stage, m.top1) for m in written] == [
        ("first", "4bit", 0.25),
        ("first", "4bit", 0.5),
        ("first", "4bit", 0.75),
        ("second", "4bit", 0.5),
        ("first", "2bit", 1.0),
    ]
    assert [NANO.complete(m.arch) for m in written] == [archs[i] for i in (0, 1, 2, 1, 0)]
    assert all(m.costs == all_costs(NANO, NANO.complete(m.arch)) for m in written)
    assert "stem.weight_bits" not in path.read_text()  # the brief architecture, without what cannot differ


def test_half_written_last_line_is_ignored_and_cut_off(tmp_path):
    path = tmp_path / "measurements.jsonl"
    small, large = NANO.smallest(), NANO.largest()
    list(MeasurementFile(path, "4bit").measured(NANO, lambda arch: 0.5, "a")([small]))
    whole = path.read_bytes()
    for length in (1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole + whole[:length])
        assert [m.top1 for m in read_measurements(path)] == [0.5]
    file = MeasurementFile(path, "4bit")
    assert list(file.measured(NANO, lambda arch: 0.75, "a")([large])) == [0.75]
    assert path.read_bytes().startswith(whole)
    assert [m.top1 for m in read_measurements(path)] == [0.5, 0.75]
    path.write_bytes(whole[:-1])  # even of the first line only the line end is missing
    assert read_measurements(path) == []


@pytest.mark.parametrize("line", ["{", "[]", '{"arch": {}}', json.dumps({"arch": {}, "top1": 1, "surprise": 2})])
def test_corrupt_line_is_an_error_with_file_and_line(tmp_path, line):
    path = tmp_path / "measurements.jsonl"
    good = json.dumps(measurement(NANO.smallest(), 0.5).record())
    path.write_text(f"{good}\n{line}\n{good}\n")
    with pytest.raises((ValueError, OSError), match=r"measurements\.jsonl, line 2"):
        MeasurementFile(path, "4bit")


def test_missing_file_has_no_measurements(tmp_path):
    assert read_measurements(tmp_path / "none.jsonl") == []


def test_file_of_another_space_is_refused(tmp_path):
    spaces = [NANO.restrict({"resolution": r}) for r in NANO.choices["resolution"][:2]]
    file = MeasurementFile(tmp_path / "measurements.jsonl", "4bit")
    list(file.measured(spaces[0], lambda arch: 0.5, "a")([spaces[0].smallest()]))
    with pytest.raises(ValueError, match="another search space"):
        list(file.measured(spaces[1], lambda arch: 0.5, "a")([spaces[1].smallest()]))


@pytest.mark.parametrize("top1", [float("nan"), -0.1, 71.3])
def test_impossible_accuracy_is_not_written(tmp_path, top1):
    path = tmp_path / "measurements.jsonl"
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        list(MeasurementFile(path, "4bit").measured(NANO, lambda arch: top1, "a")([Arch(NANO.largest())]))
    assert not path.exists()
