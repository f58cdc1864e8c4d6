"""Accuracy predictor of QFA (https://arxiv.org/abs/2105.08952): of an architecture without running it.

As there, architectures are one-hot encoded (depths as thermometers) and a small network is fitted to some that were
measured. Ours reads two costs too, predicts the logarithm of the error, and is fitted in closed form:

    x = (encoding, log MACs, log BitOPs), centred and scaled
    -log(1.01 - accuracy) = b + w x + sum_h c_h (v_h x)^2 + noise

A layer of squared units is a polynomial of second degree: the choices, the costs, and all products of two of them.
w, v and c are those of a Gaussian process with the kernel K = G + r G^2, G = x x' (Rasmussen and Williams, 2006,
equations 2.25 and 5.8), cut to the largest terms of the quadratic part; r and the noise are those under which the
measured accuracies are most likely. There is no learning rate, and nothing to stop early.

Why not QFA's perceptron: that was fitted with 8,000 pairs. With 50 to 500 measured ones its rank correlation is far
lower (docs/qfa.md). Ridge regression on x is as good as this with 500 pairs, and clearly worse with 50: there the
products and the estimated noise matter.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import ThreadpoolController

from oncequant.answers import Metric
from oncequant.cost import COSTS
from oncequant.files import FileError
from oncequant.space import SearchSpace
from oncequant.tensor_files import read_tensors, write_tensors

FORMAT = "oncequant predictor 1"
LEAST_PAIRS = 30
INPUT_COSTS = ("macs", "bitops")
ERROR_OFFSET = 0.01  # the logarithm of errors far below a point would be mostly noise of the validation set
PRODUCTS = (0.0, 0.03, 0.1, 0.3, 1.0)  # r
NOISE = np.logspace(-3, 1, 13)  # variance, relative to that of w x
COMPARED = 500  # pairs that r and the noise are chosen with: the time grows with the third power
UNITS = 32  # squared units kept: as accurate as all 546 of the imagenet space
FOLDS = 5
CHUNK = 4096  # architectures at a time, so that their encoding stays in the cache

# Small matrices: where others use the cores too, BLAS waited for its threads up to 50 times as long as it worked.
one_thread = ThreadpoolController().wrap(limits=1, user_api="blas")


@dataclass(frozen=True)
class AccuracyPredictor:
    """Predicts the accuracy of the architectures of `space`; a value, see `fit_predictor`."""

    space: SearchSpace
    weight: np.ndarray
    """(inputs, 1 + units), float32: what the linear part and the squared units read, w and V."""
    bias: np.ndarray
    """(1 + units,), float32."""
    curvature: np.ndarray
    """(units,), float32: how the squares add up, c."""
    metric: Metric = "top1"
    """Which accuracy."""

    @one_thread
    def accuracy(self, codes: np.ndarray) -> np.ndarray:
        """Predicted accuracy in [0, 1] of the architectures `codes` (n, genes), shape (n,), float64."""
        parts = [np.empty(0)]
        for start in range(0, len(codes), CHUNK):
            encoding, costs = inputs(self.space, codes[start : start + CHUNK])
            split = encoding.shape[1]
            hidden = encoding @ self.weight[:split] + costs @ self.weight[split:] + self.bias  # (n, 1 + units)
            parts.append(target_to_accuracy(hidden[:, 0] + np.square(hidden[:, 1:]) @ self.curvature))
        return np.concatenate(parts)


@dataclass(frozen=True)
class Quality:
    """How well a predictor does on architectures that it was not fitted to."""

    kendall_tau: float
    """Rank correlation of predicted and measured accuracy, -1 to 1; 0 if either is constant."""
    rmse: float
    """Root mean square error of the predicted accuracy."""
    pairs: int
    """Measured architectures there are."""
    held_out: int
    """Predictions that the two figures are of."""


def encode(space: SearchSpace, codes: np.ndarray) -> np.ndarray:
    """Binary inputs for the architectures `codes` (n, genes): float32, shape (n, sum of the cardinalities).

    One-hot for every free choice, but a thermometer (one for every value reached) for those that switch on others, the
    depths. All zero for the choices of absent blocks. In memory, columns are contiguous.
    """
    values = space.decode_batch(codes)
    gates = {gate[0] for gate in map(space.gate, space.free) if gate}
    encoding = np.empty((int(space.cardinalities.sum()), len(codes)), dtype=np.float32)
    start = 0
    for name, cardinality in zip(space.free, space.cardinalities):
        allowed = np.array(space.choices[name])[:, None]
        block = values[name] >= allowed if name in gates else values[name] == allowed  # (cardinality, n)
        if gate := space.gate(name):
            block &= values[gate[0]] >= gate[1]
        encoding[start : start + cardinality] = block
        start += cardinality
    return encoding.T


def inputs(space: SearchSpace, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the predictor reads: the encoding and the log costs, (n, width) and (n, 2), float32."""
    specs = space.layers_batch(codes)
    costs = [np.broadcast_to(np.log(COSTS[name](specs)), len(codes)) for name in INPUT_COSTS]
    return encode(space, codes), np.stack(costs, axis=1).astype(np.float32)


def accuracy_to_target(accuracy: np.ndarray) -> np.ndarray:
    """What is fitted: choices act on the error by factors rather than by points."""
    return -np.log(1 + ERROR_OFFSET - accuracy)


def target_to_accuracy(target: np.ndarray) -> np.ndarray:
    """Inverse of `accuracy_to_target`, kept within [0, 1]."""
    return np.clip(1 + ERROR_OFFSET - np.exp(-target.astype(np.float64)), 0, 1)


def fit_predictor(
    space: SearchSpace, codes: np.ndarray, accuracy: np.ndarray, *, seed: int, metric: Metric = "top1"
) -> AccuracyPredictor:
    """Fit to the measured `accuracy` (n,) in [0, 1], of a metric, of the architectures `codes` (n, genes).

    `seed` draws the pairs that r and the noise are chosen with. Raises ValueError for fewer than 30 different
    architectures and for accuracies outside [0, 1]. 2,000 pairs take about a second; the time grows with the third
    power of their number from there, the memory with the second.
    """
    check_pairs(codes, accuracy)
    return replace(fit(space, codes, np.asarray(accuracy), seed), metric=metric)


def check_pairs(codes: np.ndarray, accuracy: np.ndarray) -> None:
    """Raise ValueError if there is too little to fit, or something else than accuracies."""
    if len(codes) != len(accuracy):
        raise ValueError(f"{len(codes)} architectures but {len(accuracy)} accuracies")
    different = len(np.unique(codes, axis=0))
    if different < LEAST_PAIRS:
        raise ValueError(f"a predictor needs at least {LEAST_PAIRS} different measured architectures, got {different}")
    if wrong := [value for value in np.asarray(accuracy, dtype=float).tolist() if not 0 <= value <= 1]:
        raise ValueError(f"accuracies must be in [0, 1], got {wrong[0]:g}")


@one_thread
def fit(space: SearchSpace, codes: np.ndarray, accuracy: np.ndarray, seed: int) -> AccuracyPredictor:
    """`fit_predictor` without its checks."""
    from scipy.linalg import solve  # a third of a second, which every command would pay

    encoding, costs = inputs(space, codes)
    x = np.concatenate([encoding, costs], axis=1, dtype=np.float64)
    width = encoding.shape[1]
    centre, scale = x.mean(axis=0), x.std(axis=0)
    scale[:width] = np.sqrt(np.square(scale[:width]).sum())  # one for the encoding: rare values are not blown up
    scale[scale < 1e-6] = 1  # a constant input
    x = (x - centre) / scale
    target = accuracy_to_target(accuracy)
    offset = target.mean()
    target = target - offset

    some = np.random.default_rng(seed).permutation(len(x))[:COMPARED]
    products, noise = most_likely(x[some] @ x[some].T, target[some])
    gram = x @ x.T
    kernel = gram + products * np.square(gram)
    kernel[np.diag_indices_from(kernel)] += noise
    dual = solve(kernel, target, assume_a="pos", overwrite_a=True)  # (n,)

    curvature, units = np.linalg.eigh(products * (x.T * dual) @ x)  # (inputs,), (inputs, inputs)
    largest = np.argsort(-np.abs(curvature))[:UNITS]
    weight = np.column_stack([x.T @ dual, units[:, largest]]) / scale[:, None]
    bias = -centre @ weight
    bias[0] += offset
    arrays = weight, bias, curvature[largest]
    weight, bias, curvature = (np.ascontiguousarray(a, dtype=np.float32) for a in arrays)
    return AccuracyPredictor(space, weight, bias, curvature)


def most_likely(gram: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """r and the noise, of those listed above, that maximise the marginal likelihood of `target` (n,), gram (n, n)."""
    likelihood: dict[tuple[float, float], float] = {}
    for products in PRODUCTS:
        variance, vectors = np.linalg.eigh(gram + products * np.square(gram))
        squares = np.square(vectors.T @ target)
        for noise in NOISE:
            total = np.maximum(variance, 0) + noise
            scale = np.mean(squares / total) + 1e-12  # the likeliest factor of the whole covariance
            likelihood[products, noise] = -len(target) * np.log(scale) - np.log(total).sum()
    return max(likelihood, key=likelihood.__getitem__)


def quality(space: SearchSpace, codes: np.ndarray, accuracy: np.ndarray, seed: int) -> Quality:
    """What to expect of `fit_predictor` on these pairs, by cross-validation: see there for shapes and errors.

    Every pair is predicted by a predictor that was fitted to four fifths of the pairs without it; repeated measurements
    of one architecture stay together.
    """
    check_pairs(codes, accuracy)
    accuracy = np.asarray(accuracy, dtype=float)
    from scipy.stats import kendalltau  # takes a second to import, which every command would pay

    _, arch = np.unique(codes, axis=0, return_inverse=True)
    fold = np.random.default_rng(seed).permutation(arch.max() + 1)[arch.ravel()] % FOLDS
    predicted = np.empty(len(accuracy))
    for k in range(FOLDS):
        kept = fold != k
        if not kept.all():
            predicted[~kept] = fit(space, codes[kept], accuracy[kept], seed).accuracy(codes[~kept])
    tau = kendalltau(predicted, accuracy).statistic
    rmse = float(np.sqrt(np.square(predicted - accuracy).mean()))
    return Quality(0.0 if np.isnan(tau) else float(tau), rmse, len(accuracy), len(accuracy))


def save_predictor(path: Path, predictor: AccuracyPredictor, quality: Quality) -> None:
    """Write a safetensors file atomically. Raises FileError."""
    tensors = {name: torch.from_numpy(getattr(predictor, name)) for name in ("weight", "bias", "curvature")}
    metadata = {
        "format": FORMAT,
        "space": json.dumps(identity(predictor.space)),
        "quality": json.dumps(asdict(quality)),
        "metric": predictor.metric,
    }
    write_tensors(Path(path), tensors, metadata)


def load_predictor(path: Path, space: SearchSpace) -> tuple[AccuracyPredictor, Quality]:
    """The predictor of a file and its quality. Raises FileError if it is missing, damaged or of another space."""
    tensors, metadata = read_tensors(Path(path))
    if metadata.get("format") != FORMAT:
        raise FileError(f"{path} is not a predictor of oncequant: its format is {metadata.get('format')!r}")
    try:
        theirs, ours = json.loads(metadata["space"]), identity(space)
        if different := [what for what in theirs | ours if ours.get(what) != theirs.get(what)]:
            there, here = (values.get(different[0]) for values in (theirs, ours))
            raise FileError(f"{path} is for another search space: {different[0]} is {there} there and {here} here")
        quality = Quality(**json.loads(metadata["quality"]))
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        predictor = AccuracyPredictor(space, **arrays, metric=_metric(metadata))
        predictor.accuracy(space.encode(space.smallest())[None])  # the shapes fit
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"{path} is not a complete predictor: {error}") from error
    return predictor, quality


def metric_of(path: Path) -> Metric | None:
    """Which accuracy the predictor of a file predicts; None if there is none. Raises FileError."""
    return _metric(read_tensors(path)[1]) if path.exists() else None


def _metric(metadata: Mapping[str, str]) -> Metric:
    """Files of older versions do not say it."""
    return "balanced" if metadata.get("metric") == "balanced" else "top1"


def identity(space: SearchSpace) -> dict[str, list[int] | float]:
    """What makes a predictor belong to a space: the free choices with their values, and what the largest costs."""
    choices = {name: list(space.choices[name]) for name in space.free}
    specs = space.layers(space.largest())
    return choices | {f"{name} of the largest": float(COSTS[name](specs)) for name in INPUT_COSTS}
