"""Pictures as users find them, each run with nothing but `--data`: what the networks are worth, how long it takes.

CIFAR-100's columns, a Kaggle competition, a CSV beside a folder, and parquet files as the hub converts them. Pictures
are scikit-learn's digits, as PNG files of 8 px, so that a run with default options takes a minute or two.

    python recipes/field_layouts.py OUT results/field-layouts_cpu_202611.csv
"""

import csv
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from PIL import Image
from sklearn.datasets import load_digits

from oncequant.files import write_atomically, write_csv
from oncequant.run_folder import date_of


class Picture(NamedTuple):
    """One picture of the data set."""

    content: bytes
    label: int


@dataclass(frozen=True)
class Options:
    """Where to."""

    out: Annotated[Path, tyro.conf.Positional]
    """Folder for pictures and runs."""
    results: Annotated[Path, tyro.conf.Positional]
    """Table to write."""
    layouts: tuple[str, ...] = ("two-labels", "kaggle", "csv-beside-folder", "hub-converted")
    """Which of them."""


Pictures = Sequence[Picture]
NAMES = "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"
TEST = 359  # of 1,797 pictures, the last ones


def cell(picture: Picture) -> dict[str, bytes | None]:
    """A picture in a column of pictures."""
    return {"bytes": picture.content, "path": None}


def two_labels(root: Path, train: Pictures, test: Pictures) -> None:
    """CIFAR-100's columns: img, fine_label, coarse_label."""
    for split, pictures in (("train", train), ("test", test)):
        fine = [picture.label for picture in pictures]
        columns = dict(img=[cell(p) for p in pictures], fine_label=fine, coarse_label=[label // 2 for label in fine])
        pq.write_table(pa.table(columns), root / f"{split}-00000-of-00001.parquet")


def hub_converted(root: Path, train: Pictures, test: Pictures) -> None:
    """The hub's conversion to parquet: default/train/0000.parquet and so on."""
    for split, pictures in (("train", train), ("test", test)):
        half = len(pictures) // 2
        for number, part in enumerate((pictures[:half], pictures[half:])):
            path = root / "default" / split / f"{number:04d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table(dict(image=[cell(p) for p in part], label=[p.label for p in part])), path)


def kaggle(root: Path, train: Pictures, test: Pictures) -> None:
    """A competition: train/, trainLabels.csv with id and label, a test folder without labels, a sample submission."""
    write(root / "train", [f"{i}.png" for i in range(1, len(train) + 1)], train)
    write(root / "test", [f"{i}.png" for i in range(1, len(test) + 1)], test)
    table(root / "trainLabels.csv", ["id", "label"], [(i, NAMES[p.label]) for i, p in enumerate(train, start=1)])
    table(root / "sampleSubmission.csv", ["id", "label"], [(i, "zero") for i in range(1, len(test) + 1)])


def csv_beside_folder(root: Path, train: Pictures, test: Pictures) -> None:
    """images/ and labels.csv with file, label and split."""
    rows = [("train", p) for p in train] + [("test", p) for p in test]
    names = [f"{i:05d}.png" for i in range(len(rows))]
    write(root / "images", names, [picture for _, picture in rows])
    listed = [(name, NAMES[p.label], split) for name, (split, p) in zip(names, rows)]
    table(root / "labels.csv", ["file", "label", "split"], listed)


LAYOUTS: tuple[Callable[[Path, Pictures, Pictures], None], ...] = (
    two_labels, kaggle, csv_beside_folder, hub_converted
)  # fmt: skip


def write(folder: Path, names: Sequence[str], pictures: Pictures) -> None:
    """Picture files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in zip(names, pictures, strict=True):
        (folder / name).write_bytes(picture.content)


def table(path: Path, columns: Sequence[str], rows: Sequence[tuple]) -> None:
    """A CSV file."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([columns, *rows])
    write_atomically(path, text.getvalue().encode())


def all_pictures() -> Pictures:
    """The digits, as PNG files."""
    digits, found = load_digits(), []
    for pixels, label in zip((digits.images * (255 / 16)).round().astype(np.uint8), digits.target):
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, "png")
        found.append(Picture(content.getvalue(), int(label)))
    return found


def main(options: Options) -> None:
    """Write the layouts that are not there yet, run those that are not done, and the table of all."""
    pictures, rows = all_pictures(), []
    named = {layout.__name__.replace("_", "-"): layout for layout in LAYOUTS}
    for name in options.layouts:
        root, run, seconds = options.out / name, options.out / "runs" / name, options.out / "runs" / f"{name}.seconds"
        if not root.exists():
            root.mkdir(parents=True)
            named[name](root, pictures[:-TEST], pictures[-TEST:])
        if not seconds.exists():
            began = time.monotonic()
            subprocess.run(
                [sys.executable, "-m", "oncequant", "run", "--data", str(root), "--run", str(run)], check=True
            )
            seconds.write_text(f"{time.monotonic() - began:.0f}")
        made, members = (json.loads((run / f"{what}.json").read_text()) for what in ("run", "family"))
        exports = {one["name"]: one for one in json.loads((run / "exports.json").read_text())}
        for member in members:
            rows.append(
                {
                    "layout": name,
                    **{key: made["data"][key] for key in ("train", "validation", "test", "classes")},
                    "name": member["name"],
                    "top1_test": member["top1_test"],
                    "problems": "; ".join(exports[member["name"]]["problems"]),
                    "seconds_of_run": int(seconds.read_text()),
                    **{key: made[key] for key in ("seed", "commit", "device")},
                    "date": date_of(run),
                }
            )
    write_csv(options.results, rows)


if __name__ == "__main__":
    main(tyro.cli(Options))
