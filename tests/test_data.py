"""What `oncequant.data` promises: the same batches after a resume, augmentation, honest splits."""

from dataclasses import replace
from itertools import islice

import pytest
import torch
from pictures import CARVED, arrays, from_arrays, rows_of, same, surroundings, write_folder  # noqa: F401 - surroundings is a fixture
from PIL import Image
from torch.utils.data import TensorDataset

from oncequant.data import (
    DataError,
    ResidentSplit,
    StreamingSplit,
    calibration_batches,
    eval_batches,
    load_data,
    steps_per_epoch,
    train_batches,
)
from oncequant.data.images import resize

# ------------------------------------------------------------------ batches


@pytest.mark.parametrize("streaming, crop, workers", [
    (False, "auto", 0), (False, "resized", 0), (True, "auto", 0), (True, "pad", 0), (True, "auto", 2),
])  # fmt: skip
def test_a_resumed_run_sees_the_batches_of_an_uninterrupted_one(streaming, crop, workers):
    data = from_arrays(streaming=streaming)
    assert isinstance(data.train, StreamingSplit if streaming else ResidentSplit)
    whole = list(islice(train_batches(data, 7, seed=5, crop=crop), 14))  # 39 images: the third epoch has begun
    torch.manual_seed(123)  # global randomness is not looked at ...
    state = torch.random.get_rng_state()
    resumed = train_batches(data, 7, seed=5, crop=crop, start_step=6, workers=workers)
    assert same(islice(resumed, 8), whole[6:])
    assert torch.equal(torch.random.get_rng_state(), state)  # ... nor touched
    assert not same(islice(train_batches(data, 7, seed=6, crop=crop), 14), whole)


@pytest.mark.parametrize("crop", ["pad", "resized"])
def test_the_same_image_is_augmented_differently_at_every_step(crop):
    data = from_arrays(flip=False)
    data = replace(data, train=data.train.subset(torch.tensor([0])))
    seen = {images.numpy().tobytes() for images, _ in islice(train_batches(data, 1, seed=0, crop=crop), 12)}
    assert len(seen) > 6


def test_an_epoch_shows_every_image_once_and_drops_the_incomplete_batch():
    data = from_arrays(streaming=False, flip=False)
    n = len(data.train)
    assert n % 4 and steps_per_epoch(data, 4) == n // 4
    epochs = []
    batches = train_batches(data, 4, seed=0, crop="none")
    for _ in range(2):
        epochs.append([x.numpy().tobytes() for images, _ in islice(batches, n // 4) for x in images])
        assert len(set(epochs[-1])) == len(epochs[-1]) == n // 4 * 4
    assert epochs[0] != epochs[1]
    assert not same(islice(train_batches(data, 4, seed=1, crop="none"), 5),
                    islice(train_batches(data, 4, seed=2, crop="none"), 5))  # fmt: skip


def test_a_set_smaller_than_the_batch_gives_batches_of_all_of_it():
    data = from_arrays(30)
    assert steps_per_epoch(data, 500) == 1
    for images, labels in islice(train_batches(data, 500, seed=0), 3):
        assert len(images) == len(data.train)
        assert labels.sort().values.equal(data.train.labels.sort().values)


@pytest.mark.parametrize("streaming", [False, True])
def test_labels_stay_with_their_images(streaming):
    data = from_arrays(streaming=streaming, flip=False)
    label = dict(zip(rows_of(data.train), data.train.labels.tolist()))
    for images, labels in islice(train_batches(data, 8, seed=0, crop="none"), 6):
        pixels = denormalised(data, images)
        assert [label[x.numpy().tobytes()] for x in pixels] == labels.tolist()


def denormalised(data, images):
    std, mean = (torch.tensor(v).view(1, -1, 1, 1) for v in (data.std, data.mean))
    return ((images * std + mean) * 255).round().to(torch.uint8)


@pytest.mark.parametrize("flip", [False, True])
def test_images_are_mirrored_only_when_asked(flip):
    data = from_arrays(flip=flip)
    originals = set(rows_of(data.train))
    mirrored = straight = 0
    for images, _ in islice(train_batches(data, 30, seed=0, crop="none"), 4):
        for x in denormalised(data, images):
            straight += x.numpy().tobytes() in originals
            mirrored += x.flip(2).numpy().tobytes() in originals
    assert straight + mirrored == 120
    assert 30 < mirrored < 90 if flip else mirrored == 0


def test_pad_crop_is_every_shift_of_the_reflected_image():
    data = from_arrays(30, flip=False)  # 16 pixels: padding of 2
    originals = data.train.images(torch.arange(len(data.train)))
    padded = torch.nn.functional.pad(originals.float(), (2, 2, 2, 2), mode="reflect").to(torch.uint8)
    windows = padded.unfold(2, 16, 1).unfold(3, 16, 1).permute(0, 2, 3, 1, 4, 5)  # (n, 5, 5, C, S, S)
    offset = {w.numpy().tobytes(): (i, dy, dx) for i, a in enumerate(windows) for dy, b in enumerate(a)
              for dx, w in enumerate(b)}  # fmt: skip
    seen = [offset[x.contiguous().numpy().tobytes()] for images, _ in islice(train_batches(data, 18, seed=0), 20)
            for x in denormalised(data, images)]  # fmt: skip
    assert {(dy, dx) for _, dy, dx in seen} == {(dy, dx) for dy in range(5) for dx in range(5)}


def test_resized_crops_cut_out_a_quarter_to_all_of_a_resident_and_a_streamed_image_alike():
    ramp = torch.arange(0, 256, 4, dtype=torch.uint8).expand(64, 64)  # brightness tells the column
    images = torch.stack([ramp, ramp.T]).repeat(10, 1, 1)[:, None]
    source = (TensorDataset(images, torch.arange(20) % 2), None, None)
    uniform = torch.rand(40, 4, generator=torch.Generator().manual_seed(0))
    index = torch.tensor([0, 1]).repeat(20)  # a left-to-right and a top-to-bottom ramp
    crops = []
    for limit in (2**20, 0):
        split = load_data(source, size=64, resident_limit_bytes=limit).train
        index = (split.labels == 1).long().argsort(stable=True)[[0, -1]].repeat(20)
        crops.append(split.images(index, uniform).float())
    resident, streamed = crops
    assert (resident - streamed).abs().max() <= 8  # two implementations of bilinear: at most two columns apart
    widths = (resident[::2, 0, 0, -1] - resident[::2, 0, 0, 0]) / 252
    heights = (resident[1::2, 0, -1, 0] - resident[1::2, 0, 0, 0]) / 252
    assert widths.min() > 0.4 and widths.max() > 0.9 and widths.std() > 0.1
    assert heights.min() > 0.4 and heights.max() > 0.9
    for left, width in ((resident[::2, 0, 0, 0] / 252, widths), (resident[1::2, 0, 0, 0] / 252, heights)):
        place = (left / (1 - width))[width < 0.8]  # 0: at the first border, 1: at the last
        assert place.min() < 0.3 and place.max() > 0.7


@pytest.mark.parametrize("streaming", [False, True])
def test_eval_batches_show_every_image_in_order_without_augmentation(streaming):
    data = from_arrays(streaming=streaming)
    batches = list(eval_batches(data, data.test, batch_size=5))
    assert [len(x) for x, _ in batches] == [5, 5, 2]
    assert torch.cat([y for _, y in batches]).equal(data.test.labels)
    pixels = denormalised(data, torch.cat([x for x, _ in batches]))
    assert pixels.equal(data.test.images(torch.arange(12)).cpu()) and batches[0][0].dtype == torch.float32
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (data.mean, data.std))
    expected = (data.test.images(torch.arange(5)).float() / 255 - mean) / std
    torch.testing.assert_close(batches[0][0], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "size, device, images", [(8, "cpu", 500), (32, "cpu", 97), (224, "cpu", 64), (224, "meta", 79)]
)
def test_large_images_are_evaluated_fewer_at_a_time(size, device, images):
    data = replace(from_arrays(), size=size, device=torch.device(device))
    split = ResidentSplit(torch.zeros(600, dtype=torch.int64), torch.zeros(600, data.channels, 1, 1, dtype=torch.uint8))
    assert len(next(eval_batches(data, split))[0]) == images


def test_resident_and_streaming_data_are_the_same_but_for_the_storage(tmp_path):
    write_folder(tmp_path)
    resident = load_data(str(tmp_path), size=12)
    streaming = load_data(str(tmp_path), size=12, resident_limit_bytes=40 * 3 * 12 * 12 - 1)
    assert isinstance(resident.train, ResidentSplit) and isinstance(streaming.train, StreamingSplit)
    assert isinstance(load_data(str(tmp_path), size=12, resident_limit_bytes=40 * 3 * 12 * 12).train, ResidentSplit)
    for name in ("train", "validation", "test"):
        assert same(eval_batches(resident, getattr(resident, name)), eval_batches(streaming, getattr(streaming, name)))
    assert (resident.fingerprint, resident.mean, resident.std) == (streaming.fingerprint, streaming.mean, streaming.std)
    pad = dict(seed=0, crop="pad")
    assert same(islice(train_batches(resident, 8, **pad), 5), islice(train_batches(streaming, 8, **pad), 5))


def test_the_training_images_are_normalised():
    for data in (from_arrays(90), load_data("digits", size=8)):
        images = torch.cat([x for x, _ in eval_batches(data, data.train)])
        assert images.mean((0, 2, 3)).abs().max() < 0.05
        assert (images.std((0, 2, 3)) - 1).abs().max() < 0.05


@pytest.mark.parametrize("images, batch_size, sizes", [
    (32, 16, {16}), (33, 16, {11}), (3, 2, {3}), (10**6, 16, {13})])  # fmt: skip
def test_calibration_batches_are_training_images_in_batches_of_two_or_more(images, batch_size, sizes):
    data = from_arrays()
    batches = calibration_batches(data, images, batch_size, seed=1)
    assert {len(x) for x, _ in batches} == sizes
    pixels = [x.numpy().tobytes() for batch, _ in batches for x in denormalised(data, batch)]
    assert len(set(pixels)) == len(pixels) == min(images, len(data.train)) and set(pixels) <= set(rows_of(data.train))
    assert same(batches, calibration_batches(data, images, batch_size, seed=1))
    assert not same(batches, calibration_batches(data, images, batch_size, seed=2))


def test_resize_is_antialiased_and_leaves_equal_sizes_alone():
    images = torch.rand(2, 3, 32, 32)
    assert resize(images, 32) is images
    assert resize(images, 8).shape == (2, 3, 8, 8)
    stripes = (torch.arange(32) % 4 == 0).float().expand(1, 1, 32, 32)
    assert (resize(stripes, 8) - 0.25).abs().max() < 0.1  # without antialiasing no stripe is seen


def test_arguments_out_of_range_are_named():
    data = from_arrays(30)
    for call, words in [
        (lambda: train_batches(data, 8, seed=0, crop="centre"), "auto, pad, resized, none"),
        (lambda: train_batches(data, 0, seed=0), "batch_size"),
        (lambda: train_batches(data, 8, seed=0, start_step=-1), "start_step"),
        (lambda: calibration_batches(data, 1, 8), "at least 2 images"),
        (lambda: from_arrays(30, test_fraction=0.9), "test_fraction=0.9"),
        (lambda: from_arrays(30, max_train=2), "max_train=2"),
    ]:
        with pytest.raises(DataError, match=words):
            call()


# ------------------------------------------------------------------ splits


def test_carved_splits_are_disjoint_stratified_and_a_function_of_the_seed():
    counts = [50, 30, 10]
    labels = torch.arange(3).repeat_interleave(torch.tensor(counts))
    source = (TensorDataset(arrays(90).tensors[0], labels), None, None)
    data, again, other = (load_data(source, size=16, seed=s, **CARVED) for s in (0, 0, 1))
    parts = [rows_of(split) for split in (data.train, data.validation, data.test)]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 90
    assert data.test.labels.bincount().tolist() == data.validation.labels.bincount().tolist() == [10, 6, 2]
    assert data.train.labels.bincount().tolist() == [30, 18, 6]
    assert parts == [rows_of(split) for split in (again.train, again.validation, again.test)]
    assert parts[2] != rows_of(other.test)
    assert data.fingerprint == again.fingerprint != other.fingerprint


def test_validation_is_no_larger_than_choosing_needs(monkeypatch):
    """Beyond MOST_VALIDATION images training has the rest; how large it was is kept, so that it stays."""
    monkeypatch.setattr("oncequant.data.splits.MOST_VALIDATION", 20)
    labels = torch.arange(2).repeat_interleave(torch.tensor([300, 100]))
    source = (TensorDataset(arrays(400, size=4).tensors[0], labels), None, None)
    data, asked = load_data(source, size=4), load_data(source, size=4, validation_fraction=0.15)
    assert data.validation.labels.bincount().tolist() == [15, 5] and len(asked.validation) == 60
    assert set(rows_of(data.validation)) < set(rows_of(asked.validation))
    assert rows_of(data.test) == rows_of(asked.test)
    assert data.loading.validation_fraction == 0.05 and asked.loading.validation_fraction == 0.15


def test_max_train_keeps_a_stratified_part_and_leaves_the_other_splits_alone():
    labels = torch.arange(3).repeat_interleave(torch.tensor([100, 50, 5]))
    source = (TensorDataset(arrays(155, size=4).tensors[0], labels), None, None)
    full, some, few, all_of_it = (load_data(source, size=4, max_train=m) for m in (None, 50, 3, 10**6))
    assert rows_of(some.test) == rows_of(full.test) and rows_of(some.validation) == rows_of(full.validation)
    assert set(rows_of(few.train)) < set(rows_of(some.train)) < set(rows_of(full.train))
    assert rows_of(all_of_it.train) == rows_of(full.train)
    assert len(some.train) == 50 and few.train.labels.bincount().tolist() == [1, 1, 1]
    share = full.train.labels.bincount() * 50 / len(full.train)
    assert (some.train.labels.bincount() - share).abs().max() <= 1.5


@pytest.mark.parametrize("validation", ["val", "valid", "validation", None])
def test_the_splits_of_a_folder_are_respected(tmp_path, validation):
    write_folder(tmp_path / "train", count=20)
    write_folder(tmp_path / "test", count=3, size=(12, 12))
    for i in range(3):  # the test images are white, the validation images black
        for name in ("cat", "dog"):
            Image.new("RGB", (12, 12), "white").save(tmp_path / "test" / name / f"{i:03}.png")
            if validation:
                (tmp_path / validation / name).mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (12, 12), "black").save(tmp_path / validation / name / f"{i}.png")
    data = load_data(str(tmp_path), size=12)
    assert len(data.test) == 6 and data.test.images(torch.arange(6)).min() == 255
    if validation:
        assert len(data.train) == 40 and len(data.validation) == 6
        assert data.validation.images(torch.arange(6)).max() == 0
    else:
        assert len(data.train) == 34 and len(data.validation) == 6
        assert not set(rows_of(data.validation)) & set(rows_of(data.train))


@pytest.mark.parametrize(
    "count, carve_test, fits", [(3, True, True), (2, True, False), (2, False, True), (1, False, False)]
)
def test_every_class_needs_an_image_in_each_carved_split(count, carve_test, fits):
    labels = torch.tensor([0] * 30 + [1] * count)
    train = TensorDataset(arrays(30 + count, size=4).tensors[0], labels)
    source = (train, None, None if carve_test else train)
    if fits:
        data = load_data(source, size=4)
        assert all(1 in split.labels for split in (data.train, data.validation, data.test))
    else:
        with pytest.raises(DataError, match=rf"class '1'.*, {count}:"):
            load_data(source, size=4)


def test_shuffled_evaluation_is_the_same_images_in_another_fixed_order():
    """Of sorted classes the first part holds all."""
    data = load_data("digits", size=8, seed=0)
    data = replace(data, validation=data.validation.subset(data.validation.labels.argsort()))
    plain, first, second = (list(eval_batches(data, data.validation, 50, shuffled)) for shuffled in (False, True, True))
    assert len(plain[0][1].unique()) < 5 and len(first[0][1].unique()) == 10
    assert all(torch.equal(a, b) for one, two in zip(first, second) for a, b in zip(one, two))
    sums = [torch.cat([images.sum((1, 2, 3)) for images, _ in way]).sort().values for way in (plain, first)]
    assert torch.equal(*sums)
