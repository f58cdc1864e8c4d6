"""QFA's claim C6: how well the accuracy predictor ranks architectures, against the number of measured ones.

    python recipes/qfa_predictor.py RUN [RUN ...] [--measured 700] [--held-out 200] [--out results/NAME.csv]

RUNs are folders of `oncequant run qfa`, of different seeds. Architectures (uniform and the official mixture in
turn, another seed than the search's) are measured on the validation images; a random part is held out, predictors are
fitted to growing parts of the rest; means over several such divisions, then mean and standard deviation over runs. The
measurements resume after a kill. Beside ours: the official perceptron with its training (scikit-learn's), ridge
regression on our inputs, and BitOPs alone. `ceiling` is the Kendall tau between the validation accuracies and those
of a second measurement with as much noise, independent for each architecture, though they share their validation
images; a predictor without any error could reach more, since only one of the two is noisy then.

With --on-test the held-out subnets of the first division are measured on the test images too, which choose nothing:
`test_tau` is the agreement of predictions with that and, in the row `measured`, that of their validation accuracies:
what a measurement is worth.
"""

import warnings
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated

import numpy as np
import tyro
from scipy.stats import kendalltau
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import RidgeCV
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tables import publish

from oncequant.cost import COSTS
from oncequant.measure import Judge
from oncequant.methods import qfa
from oncequant.runs import open_run
from oncequant.search.family import measure_codes
from oncequant.search.measurements import MeasurementFile
from oncequant.search.predictor import accuracy_to_target, encode, fit_predictor, inputs, target_to_accuracy
from oncequant.space import SearchSpace
from oncequant.supernet_file import load_supernet


@dataclass(frozen=True)
class Options:
    """What to measure."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    measured: int = 700
    held_out: int = 200
    sizes: tuple[int, ...] = (50, 100, 200, 500, 1000, 2000)
    divisions: int = 5
    models: tuple[str, ...] = ("ours", "perceptron", "ridge", "bitops")
    on_test: bool = False
    out: Path | None = None


def main(options: Options) -> None:
    """Measure what is missing, fit and print a table."""
    found = defaultdict(list)
    for run in options.runs:
        for key, values in judged(run, options).items():
            found[key].append(values)
    rows = []
    for (model, size), values in found.items():
        tau, test_tau, rmse, images, ceiling = (list(column) for column in zip(*values))
        row = dict(model=model, pairs=size, held_out=options.held_out, divisions=options.divisions, seeds=len(values))
        row |= dict(kendall_tau=mean_of(tau, 3), std_over_seeds=spread(tau))
        row |= dict(test_tau=mean_of(test_tau, 3), rmse_percent=mean_of(rmse, 2), validation_images=images[0])
        rows.append(row | dict(ceiling=round(mean(ceiling), 3)))
    publish(rows, options.out)


def spread(values: list[float | None]) -> float | None:
    """Rounded standard deviation, None where there is none."""
    return None if None in values or len(values) < 2 else round(stdev(values), 3)


def mean_of(values: list[float | None], digits: int) -> float | None:
    """Rounded mean, None where there is none."""
    return None if None in values else round(mean(values), digits)


def judged(run: Path, options: Options) -> dict[tuple[str, int | None], tuple]:
    """By (model, pairs): Kendall tau, the same on test images, error in points, validation images, ceiling."""
    cfg, found_run = open_run(run, device="cpu")
    data, supernet = found_run.data, load_supernet(run, "mixed")
    space, memory = supernet.space, MeasurementFile(run / "predictor_claim.jsonl", "mixed")
    wanted = qfa.learning_codes(space, np.random.default_rng([cfg.seed, 6]), options.measured)
    if len(memory.read()) < options.measured:
        measure_codes(supernet, memory, wanted, "claim", Judge(data, cfg.calibration(data)))
    measured = {m.arch: m.top1 for m in memory.read()}
    codes = np.array([space.encode(space.complete(arch)) for arch in measured])
    top1, found = np.array(list(measured.values())), {}
    again = np.random.default_rng(0).binomial(len(data.validation), top1) / len(data.validation)
    ceiling = float(kendalltau(top1, again).statistic)
    divisions = [np.random.default_rng(division).permutation(len(top1)) for division in range(options.divisions)]
    first, on_test = divisions[0][: options.held_out], None
    if options.on_test:
        file = MeasurementFile(run / "predictor_claim_test.jsonl", "mixed")
        measure_codes(
            supernet, file, codes[first], "test", Judge(replace(data, validation=data.test), cfg.calibration(data))
        )
        by_arch = {m.arch: m.top1 for m in file.read()}
        on_test = np.array([by_arch[space.brief(space.decode(code))] for code in codes[first]])
    for size in [n for n in options.sizes if n <= len(top1) - options.held_out]:
        for model in options.models:
            taus, errors, test_tau = [], [], None
            for division, order in enumerate(divisions):
                out, kept = order[: options.held_out], order[options.held_out :][:size]
                predicted = MODELS[model](space, codes[kept], top1[kept], codes[out], division)
                tau = kendalltau(predicted, top1[out]).statistic
                taus.append(0.0 if np.isnan(tau) else tau)  # of constant predictions
                if division == 0 and on_test is not None:
                    test_tau = kendalltau(predicted, on_test).statistic
                errors.append(100 * np.sqrt(np.square(predicted - top1[out]).mean()))
            error = None if model == "bitops" else mean(errors)
            found[model, size] = (mean(taus), test_tau, error, len(data.validation), ceiling)
    if on_test is not None:
        reliable = kendalltau(top1[first], on_test).statistic
        found["measured", None] = (None, reliable, None, len(data.validation), ceiling)
    return found


def ours(space: SearchSpace, codes: np.ndarray, top1: np.ndarray, others: np.ndarray, seed: int) -> np.ndarray:
    """The accuracy predictor of `oncequant search`."""
    return fit_predictor(space, codes, top1, seed=seed).accuracy(others)


def perceptron(space: SearchSpace, codes: np.ndarray, top1: np.ndarray, others: np.ndarray, seed: int) -> np.ndarray:
    """The official one: three layers of 600 units on the encoding, Adam 3e-3, batches of 2,048, 100 epochs."""
    net = MLPRegressor(
        hidden_layer_sizes=(600, 600, 600), learning_rate_init=3e-3, batch_size=min(2048, len(top1)), max_iter=100,
        alpha=0, n_iter_no_change=100, random_state=seed,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 100 epochs are meant
        return net.fit(encode(space, codes), top1).predict(encode(space, others))


def ridge(space: SearchSpace, codes: np.ndarray, top1: np.ndarray, others: np.ndarray, seed: int) -> np.ndarray:
    """Linear in the encoding and the log costs; the penalty by cross-validation."""
    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 4, 25)))
    known, new = (np.concatenate(inputs(space, rows), axis=1) for rows in (codes, others))
    return target_to_accuracy(model.fit(known, accuracy_to_target(top1)).predict(new))


def bitops(space: SearchSpace, codes: np.ndarray, top1: np.ndarray, others: np.ndarray, seed: int) -> np.ndarray:
    """What costs more is better."""
    return COSTS["bitops"](space.layers_batch(others))


MODELS = {"ours": ours, "perceptron": perceptron, "ridge": ridge, "bitops": bitops}


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
