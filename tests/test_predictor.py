import functools
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from oncequant.cost import COSTS, Budget
from oncequant.files import FileError
from oncequant.models import space_of
from oncequant.models.mobilenet_v3 import PRESETS
from oncequant.search import predicted
from oncequant.search.budget import BudgetError, cost_batch, within
from oncequant.search.pareto import hypervolume, pareto_front
from oncequant.search.predictor import (
    AccuracyPredictor,
    Quality,
    encode,
    fit_predictor,
    load_predictor,
    quality,
    save_predictor,
)
from oncequant.space import ArchError
from oncequant.tensor_files import write_tensors

BITS = (2, 3, 4)
CONFIG = replace(PRESETS["nano"], weight_bits=BITS, act_bits=BITS, edge_bits=8)
NANO = space_of(CONFIG)
WIDER = space_of(replace(CONFIG, width=1.5))
BIT_CHOICES = [name for name in NANO.free if name.endswith("bits")]
# 1,944 architectures: few enough to know the front
SMALL = NANO.restrict(
    {name: 3 for name in NANO.free if name.endswith(("bits", "kernel_size", "expand_ratio"))}
    | {f"stage{s}.depth": 1 for s in (1, 3)}
    | {"stage2.block1.kernel_size": (3, 5), "stage2.block2.kernel_size": (3, 5), "feature_mix.weight_bits": BITS}
    | {"final_expand.weight_bits": (2, 4), "stage1.block1.expand_ratio": (2, 3)}
    | {"final_expand.act_bits": BITS, "stage3.block1.expand_ratio": (2, 3, 4)}
)
ALL_SMALL = np.unique(SMALL.canonical(np.array(list(itertools.product(*map(range, SMALL.cardinalities))))), axis=0)


def sample(space, n, seed):
    return space.sample_codes(np.random.default_rng(seed), n)


def accuracy(space, codes):
    """Top-1 that saturates with the cost, with a penalty for few bits in some layers and for their coincidence."""
    genes = np.random.default_rng(0).normal(size=codes.shape[1]) * 0.02
    log_cost = np.log(cost_batch(space, "bitops", codes))
    error = 0.3 * np.exp(-0.3 * (log_cost - 13)) * np.exp((codes - 1) @ genes)
    return 1 - error * (1 + 0.05 * ((codes[:, -1] == 0) & (codes[:, -3] == 0)))


@functools.cache
def fitted(pairs=600):
    codes = sample(NANO, pairs, seed=1)
    return fit_predictor(NANO, codes, accuracy(NANO, codes), seed=0)


class Recorded:
    """A predictor that knows the truth and what it was asked."""

    def __init__(self, space):
        self.space, self.asked = space, []

    def accuracy(self, codes):
        self.asked.append(codes)
        return accuracy(self.space, codes)


def budget(space, share, cost="bitops"):
    low, high = (COSTS[cost](space.layers(arch)) for arch in (space.smallest(), space.largest()))
    return Budget(COSTS[cost], low * (high / low) ** share)


# -- encoding


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0, 0.2))
def test_different_architectures_have_different_encodings(seed, share):
    rng = np.random.default_rng(seed)
    codes = NANO.sample_codes(rng, 4)
    codes = np.concatenate([codes, NANO.mutate_codes(codes, share, rng)])
    encoding = encode(NANO, codes)
    assert encoding.shape == (8, NANO.cardinalities.sum()) and encoding.dtype == np.float32
    assert set(np.unique(encoding)) <= {0, 1}
    for i, j in itertools.combinations(range(8), 2):
        assert (codes[i] == codes[j]).all() == (encoding[i] == encoding[j]).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_encoding_is_one_hot_with_thermometers_for_depths_and_nothing_for_absent_blocks(seed):
    codes = np.random.default_rng(seed).integers(0, NANO.cardinalities, size=(3, len(NANO.free)))
    assert (encode(NANO, codes) == encode(NANO, NANO.canonical(codes))).all()  # absent genes do not matter
    for row, encoding in zip(codes, encode(NANO, codes)):
        arch = NANO.decode(row)
        parts = np.split(encoding, np.cumsum(NANO.cardinalities)[:-1])
        for name, part in zip(NANO.free, parts):
            gate, allowed = NANO.gate(name), NANO.choices[name]
            if gate and arch[gate[0]] < gate[1]:
                assert not part.any(), name
            elif name.endswith("depth"):
                assert part.tolist() == [arch[name] >= value for value in allowed], name
            else:
                assert part.tolist() == [arch[name] == value for value in allowed], name


def test_no_architectures_and_no_choices_can_be_encoded():
    assert encode(NANO, sample(NANO, 0, 0)).shape == (0, NANO.cardinalities.sum())
    point = NANO.restrict(NANO.largest())
    assert encode(point, sample(point, 2, 0)).shape == (2, 0)
    assert fitted().accuracy(sample(NANO, 0, 0)).shape == (0,)


# -- predictor


def test_learns_a_known_function():
    test = sample(NANO, 300, seed=2)
    predicted_top1 = fitted().accuracy(test)
    assert predicted_top1.shape == (300,) and predicted_top1.dtype == np.float64
    assert kendalltau(predicted_top1, accuracy(NANO, test)).statistic > 0.9
    assert abs(predicted_top1 - accuracy(NANO, test)).mean() < 0.005
    few = fitted(pairs=30).accuracy(test)
    assert kendalltau(few, accuracy(NANO, test)).statistic > 0.4
    assert (few >= 0).all() and (few <= 1).all()


def test_prediction_does_not_depend_on_the_company():
    codes = sample(NANO, 5000, seed=3)
    together = fitted().accuracy(codes)
    assert together[::1000] == pytest.approx([fitted().accuracy(row[None])[0] for row in codes[::1000]], abs=1e-6)


def test_fit_depends_on_its_arguments_alone():
    codes = sample(NANO, 700, seed=1)  # more than are compared
    top1 = accuracy(NANO, codes)
    before = np.random.get_state()[1].tolist()
    first, second = (fit_predictor(NANO, codes, top1, seed=4) for _ in range(2))
    for name in ("weight", "bias", "curvature"):
        assert (getattr(first, name) == getattr(second, name)).all()
    assert quality(NANO, codes, top1, seed=4) == quality(NANO, codes, top1, seed=4)
    assert np.random.get_state()[1].tolist() == before


@pytest.mark.parametrize("top1", [0.0, 0.5, 1.0])
def test_equal_accuracies_are_learned_as_such(top1):
    codes = sample(NANO, 40, seed=0)
    predictor = fit_predictor(NANO, codes, np.full(40, top1), seed=0)
    assert predictor.accuracy(sample(NANO, 9, seed=1)) == pytest.approx(np.full(9, top1), abs=1e-3)
    assert quality(NANO, codes, np.full(40, top1), seed=0).kendall_tau == 0


def test_uniform_bits_and_other_collinear_inputs():
    space = space_of(replace(CONFIG, weight_bits=(4,), act_bits=(4,)))  # BitOPs and MACs rise together
    codes = sample(space, 200, seed=0)
    predictor = fit_predictor(space, codes, accuracy(space, codes), seed=0)
    test = sample(space, 200, seed=1)
    assert kendalltau(predictor.accuracy(test), accuracy(space, test)).statistic > 0.9


def test_quality_is_that_on_new_architectures():
    codes, test = sample(NANO, 200, seed=1), sample(NANO, 400, seed=2)
    top1 = accuracy(NANO, codes)
    found = quality(NANO, codes, top1, seed=0)
    predictor = fit_predictor(NANO, codes, top1, seed=0)
    assert found.kendall_tau == pytest.approx(kendalltau(predictor.accuracy(test), accuracy(NANO, test))[0], abs=0.06)
    assert (found.pairs, found.held_out) == (200, 200) and 0 < found.rmse < 0.01
    # what cannot be learned is not reported as learned, though the final fit has seen it, even twice
    noise = np.random.default_rng(0).uniform(0.4, 0.6, size=200)
    twice = quality(NANO, np.tile(codes, (2, 1)), np.tile(noise, 2), seed=0)
    assert abs(twice.kendall_tau) < 0.15 and twice.held_out == 400


@pytest.mark.parametrize("refuse", [fit_predictor, quality])
def test_refuses_what_cannot_be_fitted(refuse):
    codes = sample(NANO, 40, seed=0)
    with pytest.raises(ValueError, match="at least 30 different measured architectures, got 29"):
        refuse(NANO, codes[:29], np.full(29, 0.5), seed=0)
    with pytest.raises(ValueError, match="at least 30 .* got 1$"):
        refuse(NANO, codes[[0] * 40], np.full(40, 0.5), seed=0)
    with pytest.raises(ValueError, match="at least 30 .* got 0$"):
        refuse(NANO, codes[:0], np.empty(0), seed=0)
    with pytest.raises(ValueError, match="40 architectures but 39"):
        refuse(NANO, codes, np.full(39, 0.5), seed=0)
    for wrong in (float("nan"), 71.3, -0.1, float("inf")):
        with pytest.raises(ValueError, match=rf"accuracies must be in \[0, 1\], got {wrong:g}"):
            refuse(NANO, codes, np.array([0.5] * 39 + [wrong]), seed=0)


# -- its file


QUALITY = Quality(kendall_tau=0.5, rmse=0.0123456789, pairs=600, held_out=600)


def test_file_round_trip_is_exact(tmp_path):
    path = tmp_path / "run" / "predictor.safetensors"
    save_predictor(path, fitted(), QUALITY)
    predictor, found = load_predictor(path, NANO)
    assert found == QUALITY and isinstance(predictor, AccuracyPredictor)
    codes = sample(NANO, 100, seed=5)
    assert (predictor.accuracy(codes) == fitted().accuracy(codes)).all()
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_file_of_another_space_is_refused(tmp_path):
    path = tmp_path / "predictor.safetensors"
    save_predictor(path, fitted(), QUALITY)
    with pytest.raises(FileError, match=r"predictor\.safetensors is for another search space: macs of the largest"):
        load_predictor(path, WIDER)
    fewer = NANO.restrict({"resolution": (8, 12)})
    with pytest.raises(FileError, match=r"resolution is \[8, 10, 12\] there and \[8, 12\] here"):
        load_predictor(path, fewer)
    with pytest.raises(FileError, match="stage1.depth is .* there and None here"):
        load_predictor(path, NANO.restrict({"stage1.depth": 1}))


def test_damaged_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "predictor.safetensors"
    with pytest.raises(FileError, match="does not exist"):
        load_predictor(path, NANO)
    save_predictor(path, fitted(), QUALITY)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileError, match="not a readable safetensors"):
        load_predictor(path, NANO)
    write_tensors(path, {"weight": torch.zeros(1)}, {"format": "oncequant supernet 1"})
    with pytest.raises(FileError, match="not a predictor of oncequant: its format is 'oncequant supernet 1'"):
        load_predictor(path, NANO)
    cut = replace(fitted(), weight=fitted().weight[:-1])
    save_predictor(path, cut, QUALITY)
    with pytest.raises(FileError, match="not a complete predictor"):
        load_predictor(path, NANO)


# -- search over predictions


def points(space, codes, top1, cost="bitops"):
    return np.column_stack([np.log(cost_batch(space, cost, codes)), 1 - top1])


CASES = {
    "no budget": ((), "bitops"),
    "budget": ((budget(NANO, 0.5),), "bitops"),
    "two budgets": ((budget(NANO, 0.6), budget(NANO, 0.4, "weight_bytes")), "bitops"),
    "other cost": ((budget(NANO, 0.3, "macs"),), "weight_bytes"),
    "tight": ((budget(NANO, 0.02),), "bitops"),
}


@pytest.mark.parametrize("case", CASES)
def test_front_is_non_dominated_within_the_budgets_and_in_order_of_cost(case):
    budgets, cost = CASES[case]
    codes = predicted.search(
        NANO, fitted(), cost=cost, budgets=budgets, first=sample(NANO, 20, 0), population=30, generations=10, seed=0
    )
    assert len(codes) >= 3 and codes.shape[1] == len(NANO.free)
    assert (NANO.canonical(codes) == codes).all() and within(NANO, budgets, codes).all()
    assert (pareto_front(points(NANO, codes, fitted().accuracy(codes), cost)) == np.arange(len(codes))).all()


def test_best_under_a_budget_beats_random_ones():
    limit = budget(NANO, 0.5)
    best = predicted.search(NANO, fitted(), budgets=[limit], population=40, generations=40, seed=0)[-1:]
    others = sample(NANO, 5000, 0)
    others = others[within(NANO, [limit], others)]
    assert len(others) > 1000 and fitted().accuracy(best) > fitted().accuracy(others).max()


@pytest.mark.parametrize("own", [0, 7, 90], ids=["none", "few", "more than the population"])
def test_populations_keep_their_size(own):
    truth, progress = Recorded(NANO), []
    predicted.search(
        NANO,
        truth,
        first=sample(NANO, own, 0),
        population=40,
        generations=12,
        seed=0,
        progress=lambda *args: progress.append(args),
    )
    *generations, survivors = truth.asked
    assert [len(codes) for codes in generations] == [40] * 13 and len(survivors) == 40
    for codes in truth.asked:
        assert len(np.unique(codes, axis=0)) == 40
    start = {row.tobytes() for row in truth.asked[0]}
    assert len(start & {row.tobytes() for row in sample(NANO, own, 0)}) == min(own, 40)
    assert progress == [(done, 12) for done in range(1, 13)]


@pytest.mark.parametrize("bits", BITS)
def test_fixed_choices_are_kept(bits):
    fixed = dict.fromkeys(BIT_CHOICES, bits)
    truth = Recorded(NANO)
    codes = predicted.search(NANO, truth, fixed=fixed, first=sample(NANO, 50, 0), population=30, generations=5, seed=0)
    for arch in map(NANO.decode, np.concatenate([codes, *truth.asked])):
        assert all(arch[name] == bits for name in NANO.brief(arch) if name in fixed)
    assert len({NANO.decode(row)["resolution"] for row in codes}) > 1


def test_fixed_depth_and_values_of_its_absent_blocks():
    fixed = {"stage1.depth": 1, "stage1.block2.kernel_size": 5, "stage2.depth": 2, "stage2.block2.expand_ratio": 4}
    codes = predicted.search(NANO, fitted(), fixed=fixed, population=20, generations=5, seed=0)
    assert (NANO.canonical(codes) == codes).all()
    for arch in map(NANO.decode, codes):
        assert (arch["stage1.depth"], arch["stage2.depth"], arch["stage2.block2.expand_ratio"]) == (1, 2, 4)


def test_everything_fixed_leaves_one_architecture():
    (codes,) = predicted.search(NANO, fitted(), fixed=NANO.largest(), population=20, generations=5, seed=0)
    assert NANO.decode(codes) == NANO.largest()


@pytest.mark.parametrize("share", [None, 0.5, 0.2])
def test_finds_the_front_of_a_small_space(share):
    """With a population larger than the space, too."""
    budgets = () if share is None else [budget(SMALL, share)]
    fitting = ALL_SMALL[within(SMALL, budgets, ALL_SMALL)]
    best = fitting[pareto_front(points(SMALL, fitting, accuracy(SMALL, fitting)))]
    assert 2 <= len(best) < len(fitting) / 2
    for population in (100, 2000):
        codes = predicted.search(SMALL, Recorded(SMALL), budgets=budgets, population=population, generations=30, seed=0)
        assert {row.tobytes() for row in codes} == {row.tobytes() for row in best}


def test_beats_as_many_random_predictions():
    def volume(codes):
        low, high = np.log([budget(NANO, share).limit for share in (0, 1)])
        at = points(NANO, codes, fitted().accuracy(codes))
        return hypervolume(np.column_stack([(at[:, 0] - low) / (high - low), at[:, 1]]), (1.05, 0.5))

    for seed in range(3):
        codes = predicted.search(NANO, fitted(), population=40, generations=49, seed=seed)
        assert volume(codes) > 1.05 * volume(sample(NANO, 2000, seed))


def test_search_depends_on_the_seed_alone():
    run = functools.partial(predicted.search, NANO, fitted(), population=20, generations=10, first=sample(NANO, 10, 0))
    before = np.random.get_state()[1].tolist()
    codes = run(seed=1)
    np.random.seed(7)
    assert (run(seed=1) == codes).all()
    other = run(seed=2)
    assert other.shape != codes.shape or (other != codes).any()
    np.random.seed(7)
    state = np.random.get_state()[1].tolist()
    run(seed=1)
    assert np.random.get_state()[1].tolist() == state != before


def test_refuses_impossible_searches():
    run = functools.partial(predicted.search, NANO, Recorded(NANO), seed=0)
    with pytest.raises(BudgetError, match=r"bitops<=1k .*smallest bitops"):
        run(budgets=[Budget(COSTS["bitops"], 1000)])
    smallest = Budget(COSTS["bitops"], COSTS["bitops"](NANO.layers(NANO.smallest())))
    assert len(run(budgets=[smallest], population=4, generations=3)) == 1
    with pytest.raises(BudgetError, match="smallest bitops"):  # within reach, but not with what is fixed
        run(budgets=[smallest], fixed={"resolution": 12})
    with pytest.raises(ValueError, match="joules.*bitops"):
        run(cost="joules")
    with pytest.raises(ArchError, match=r"resolution.*\[8, 10, 12\]"):
        run(fixed={"resolution": 11})
    with pytest.raises(ValueError, match="population of at least 2"):
        run(population=1)
