"""What every searcher promises, and that the good ones beat random search."""

import functools

import numpy as np
import pytest
from small_spaces import ALL_SMALL, IMAGENET, MIXED, NANO, ONE_POINT, SMALL, budget

from oncequant.answers import Accuracy
from oncequant.cost import COSTS, Budget, bitops, macs
from oncequant.records import Measurement, read_records
from oncequant.search import SEARCHERS
from oncequant.search.budget import BudgetError, cost_batch, within
from oncequant.search.measurements import MeasurementFile
from oncequant.search.pareto import hypervolume


def one_by_one(search):
    """A searcher that takes the top-1 of one architecture."""
    return lambda space, top1, **options: search(space, lambda archs: map(top1, archs), **options)


SINGLE = {name: one_by_one(search) for name, search in SEARCHERS.items()}
all_searchers = pytest.mark.parametrize("search", SINGLE.values(), ids=SINGLE)


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
    assert [trial.accuracy for trial in found] == [accuracy(arch) for arch in asked]
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

    only_smallest = Budget(COSTS["bitops"], bitops(NANO.layers(NANO.smallest())))
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
        run(evaluations=5, budgets=[Budget(COSTS["bitops"], 1000)])
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
        return Accuracy(accuracy(arch), 0.5)

    def run():
        file = MeasurementFile(tmp_path / "run" / "measurements.jsonl", "4bit")
        return SEARCHERS[name](NANO, file.measured(NANO, measure, "it"), budgets=budgets, evaluations=40, seed=5)

    with pytest.raises(KeyboardInterrupt):
        run()
    assert run() == uninterrupted
    assert calls == 40 + 1  # the interrupted measurement is the only one repeated
    written = read_records(tmp_path / "run" / "measurements.jsonl", Measurement)
    assert [(NANO.complete(m.arch), m.top1) for m in written] == uninterrupted


@all_searchers
def test_finds_the_optimum_of_a_small_space(search):
    for seed in range(3):
        accuracy, limit = SyntheticAccuracy(SMALL, seed), budget(SMALL, 0.6)
        errors = accuracy.error(ALL_SMALL[within(SMALL, [limit], ALL_SMALL)])
        # random search has to try everything
        evaluations = len(errors) if search is SINGLE["random"] else len(errors) // 2
        found = search(SMALL, accuracy, budgets=[limit], evaluations=evaluations, seed=seed)
        assert 1 - max(trial.accuracy for trial in found) == pytest.approx(errors.min(), rel=0.01)


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
        errors = np.array([1 - t.accuracy for t in found])
        points = np.column_stack([np.log(errors / 0.2), (log_costs - low) / (high - low)])
        volumes.append(hypervolume(points, (0.3, 1.05)))
        found = search(NANO, accuracy, budgets=[budget(NANO, 0.6)], evaluations=EVALUATIONS, seed=seed)
        best.append(np.log(min(1 - t.accuracy for t in found)))
    return np.mean(volumes), np.mean(best)


@pytest.mark.parametrize("name", ["coarse_to_fine", "nsga2"])
def test_beats_random_search(name):
    (volume, best), (random_volume, random_best) = quality(name), quality("random")
    assert volume > 1.04 * random_volume
    assert best < random_best - 0.02  # 2 % fewer errors at the same budget
