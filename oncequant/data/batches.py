"""Batches of images: augmented for training, plain for evaluation and calibration.

Batches are augmented as a whole on the device, and everything random is a function of (seed, epoch) or (seed, step),
never of what ran before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from oncequant.data.rows import CHUNK
from oncequant.data.splits import Data, ResidentSplit, Split, generator_of
from oncequant.images import DataError

CROPS = ("auto", "pad", "resized", "none")
EVALUATED_PIXELS = 100_000  # of a batch on a CPU: with more, activations leave the caches


def steps_per_epoch(data: Data, batch_size: int) -> int:
    """Full batches in the training split; 1 if it is smaller than a batch."""
    return max(1, len(data.train) // batch_size)


@dataclass(frozen=True)
class _Pixels(Dataset[Tensor]):
    """Map-style dataset of whole batches, (step, indices) to uint8 (N, C, S, S): the part that loader workers do."""

    split: Split
    seed: int
    resized: bool
    shard: tuple[int, int]

    def __getitem__(self, batch: tuple[int, list[int] | Tensor]) -> Tensor:
        step, indices = batch
        mine = _part(len(indices), self.shard)
        uniform = None
        if self.resized:
            uniform = torch.rand(len(indices), 4, generator=generator_of("crop", self.seed, step))[mine]
        return self.split.images(torch.as_tensor(indices)[mine], uniform)


def train_batches(
    data: Data,
    batch_size: int,
    *,
    seed: int,
    start_step: int = 0,
    crop: str = "auto",
    workers: int = 0,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless augmented batches from step `start_step` on: float32 (N, C, S, S) normalised, int64 (N,), on the device.

    The batch of a step is a function of (data, batch_size, seed, step) alone, so a resumed run sees what an
    uninterrupted one sees. N = min(batch_size, training images); the incomplete batch at the end of an epoch is
    dropped. `crop`: "pad" shifts by up to S / 8 with reflection, "resized" cuts out 1/4 to all of the area, "none";
    "auto" is "pad" for resident and "resized" for streaming data. `workers` processes decode streaming data. `shard`
    (i, n) yields the i-th of n parts of every batch, which together are the whole batch.

    Raises `DataError` for an argument that is out of range, and for a broken image of streaming data."""
    if crop not in CROPS:
        raise DataError(f"crop must be one of {', '.join(CROPS)}, not {crop!r}")
    if batch_size < 1 or start_step < 0:
        raise DataError(f"batch_size must be at least 1 and start_step at least 0, not {batch_size} and {start_step}")
    resident = isinstance(data.train, ResidentSplit)
    crop = crop if crop != "auto" else "pad" if resident else "resized"
    plan = partial(_plan, data, min(batch_size, len(data.train)), seed, start_step)
    pixels = _Pixels(data.train, seed, crop == "resized", shard)
    if resident:
        fetched: Iterable[Tensor] = map(pixels.__getitem__, plan())
    else:
        fetched = DataLoader(
            pixels,
            batch_size=None,
            sampler=((step, indices.tolist()) for step, indices in plan()),  # tensors would need shared memory
            num_workers=workers,
            pin_memory=data.device.type == "cuda",
            generator=torch.Generator(),  # otherwise a loader advances the global one
        )
    pad = max(1, data.size // 8) if crop == "pad" else 0
    return _augmented(data, zip(plan(), _one_line_errors(fetched)), seed, pad, shard)


def _one_line_errors(fetched: Iterable[Tensor]) -> Iterator[Tensor]:
    """The same batches; an error that a loader worker wraps in its traceback becomes its last line again, and says how
    to go on: training may have taken hours by then."""
    try:
        yield from fetched
    except DataError as error:
        line = str(error).strip().splitlines()[-1].rpartition("DataError: ")[2]
        raise DataError(
            f"{line}; put a readable image in its place to go on (without it, splits would change)"
        ) from None


def _plan(data: Data, batch_size: int, seed: int, step: int) -> Iterator[tuple[int, Tensor]]:
    steps, n = steps_per_epoch(data, batch_size), len(data.train)
    while True:
        order = torch.randperm(n, generator=generator_of("order", seed, step // steps))
        for i in range(step % steps, steps):
            yield step, order[i * batch_size : (i + 1) * batch_size]
            step += 1


def _part(n: int, shard: tuple[int, int]) -> slice:
    return slice(n * shard[0] // shard[1], n * (shard[0] + 1) // shard[1])


def _augmented(
    data: Data, batches: Iterator, seed: int, pad: int, shard: tuple[int, int]
) -> Iterator[tuple[Tensor, Tensor]]:
    labels, normalise = data.train.labels.to(data.device), _normaliser(data)
    for (step, indices), pixels in batches:
        pixels, mine = pixels.to(data.device, non_blocking=True), _part(len(indices), shard)
        if pad or data.flip:
            generator, n = generator_of("shift", seed, step), len(indices)
            shift = torch.randint(-pad, pad + 1, (2, n, 1), generator=generator)[:, mine]
            mirror = (torch.rand(n, 1, generator=generator) < (0.5 if data.flip else 0))[mine]
            pixels = _shift_flip(pixels, shift, mirror)
        yield normalise(pixels), labels[indices[mine].to(data.device)]


def _shift_flip(pixels: Tensor, shift: Tensor, mirror: Tensor) -> Tensor:
    """Shift images by `shift` (2, N, 1) rows and columns, reflecting at the border, and mirror those with `mirror`
    (N, 1): one gather of rows, one of columns."""
    n, channels, side, _ = pixels.shape
    shift = shift.to(pixels.device, non_blocking=True)
    mirror = mirror.to(pixels.device, non_blocking=True)
    source = (torch.arange(side, device=pixels.device) + shift).abs()
    rows, columns = (side - 1) - ((side - 1) - source).abs()  # (N, S) each: reflected at both borders
    columns = torch.where(mirror, columns.flip(1), columns)
    plane = torch.arange(n * channels, device=pixels.device).view(n, channels, 1)
    pixels = pixels.reshape(n * channels * side, side)[(plane * side + rows[:, None]).flatten()]
    return pixels.view(n, channels, side, side).gather(3, columns[:, None, None].expand(n, channels, side, side))


def _normaliser(data: Data) -> Callable[[Tensor], Tensor]:
    """uint8 (N, C, S, S) to float32 with zero mean and unit standard deviation per channel."""
    mean = torch.tensor(data.mean, device=data.device).view(1, -1, 1, 1)
    std = torch.tensor(data.std, device=data.device).view(1, -1, 1, 1)
    scale, offset = 1 / (255 * std), mean / std
    return lambda pixels: pixels.to(data.device).to(torch.float32).mul_(scale).sub_(offset)  # moved while small


def eval_batches(
    data: Data, split: Split, batch_size: int | None = None, shuffled: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """All images of `split`, normalised and not augmented: float32 (N, C, S, S), int64 (N,), on the device.

    In the order of the split, or with `shuffled` in a random one that is always the same: of any part of it the classes
    are those of the whole. By default 64 to 500 images together, fewer of large ones."""
    if batch_size is None:
        pixels = EVALUATED_PIXELS if data.device.type == "cpu" else 40 * EVALUATED_PIXELS
        batch_size = min(max(pixels // data.size**2, CHUNK), 500)
    normalise = _normaliser(data)
    order = torch.randperm(len(split), generator=generator_of("evaluation")) if shuffled else torch.arange(len(split))
    for indices in order.split(batch_size):
        yield normalise(split.images(indices)), split.labels[indices].to(data.device)


def calibration_batches(data: Data, images: int, batch_size: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """At most `images` random training images, not augmented, for batch-norm statistics.

    Batches differ by one image at most and hold 2 or more, since a variance needs two values."""
    if images < 2 or batch_size < 2:
        raise DataError(f"calibration needs at least 2 images and a batch size of 2, not {images} and {batch_size}")
    chosen = torch.randperm(len(data.train), generator=generator_of("calibration", seed))[:images]
    normalise = _normaliser(data)
    parts = chosen.tensor_split(max(1, min(math.ceil(len(chosen) / batch_size), len(chosen) // 2)))
    return [(normalise(data.train.images(part)), data.train.labels[part].to(data.device)) for part in parts]
