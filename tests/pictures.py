"""Pictures, folders and data sets that tests of data are made of."""

from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from oncequant.data import Reading, load_data
from oncequant.data.sources import open_source

CARVED = dict(validation_fraction=0.2, test_fraction=0.2)


@pytest.fixture(autouse=True, scope="module")
def surroundings(tmp_path_factory):
    """A cache of our own, and one thread: on tiny tensors more of them only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield
    torch.set_num_threads(threads)


def picture(seed, size=(12, 12), mode="RGB"):
    """A picture that differs in every pixel, so that any shift, flip or mix-up shows."""
    channels = {"L": 1, "RGB": 3}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze())


def write_folder(root: Path, classes=("cat", "dog"), count=20, **kwargs) -> Path:
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            picture(1000 * c + i, **kwargs).save(root / name / f"{i:03}.png")
    return root


def arrays(n, classes=3, size=16, channels=3):
    """A Python dataset whose every image is distinct."""
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, channels, size, size), dtype=np.uint8))
    return TensorDataset(pixels, torch.arange(n) % classes)


def from_arrays(n=60, size=16, streaming=False, **kwargs):
    limit = dict(resident_limit_bytes=0) if streaming else {}
    return load_data((arrays(n, size=size), None, None), size=size, **limit, **kwargs)


def rows_of(split):
    """The raw images of a split as bytes: identifies them across splits and storages."""
    return [image.numpy().tobytes() for image in split.images(torch.arange(len(split)))]


def same(batches, others):
    batches, others = list(batches), list(others)
    return len(batches) == len(others) > 0 and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(batches, others)
    )


def counts(root, **reading):
    """{split: {class or label: rows}} of a source, and its notes."""
    source = open_source(str(root), Reading(**reading))
    found = {}
    for split, records in source.splits.items():
        labels = records.labels()
        found[split] = dict(Counter(records.names[label] if records.names else label for label in labels))
    return found, " ".join(source.notes)
