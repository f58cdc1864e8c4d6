"""What reads files that may be damaged: commands, and functions that stand for the first part of a command."""

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from trials import command

from oncequant import runs
from oncequant.cost_table import KEY, layer_rows
from oncequant.data import Data, eval_batches
from oncequant.export.format import Batch, Common, Exported
from oncequant.export.formats import FORMATS
from oncequant.export.lower import network_input
from oncequant.export.package import load_package
from oncequant.export.simulate import float_parameters, run_float, run_integer
from oncequant.files import write_csv, write_json
from oncequant.methods import METHODS
from oncequant.settings import DataOptions, ModelOptions
from oncequant.supernet_file import load_supernet

PICTURES = {"png": "PNG", "jpg": "JPEG", "gif": "GIF", "bmp": "BMP", "tif": "TIFF", "webp": "WEBP"}
NETWORK = Path("run/exports/2bit-L")


@dataclass(frozen=True)
class Reader:
    """Something that reads a file."""

    name: str
    action: Callable[[], None]
    prints: bool = True
    """What it prints is the same each time."""
    accepts: tuple[str, ...] = ()
    """What its refusal may say instead of the file's name."""


def by_command(text: str, prints: bool = False) -> Reader:
    """A command of the command line."""
    return Reader(text, command(text.split()), prints)


# -- pictures


def make_pictures(folder: Path, suffix: str, per_class: int = 8) -> None:
    """Two classes of smooth pictures of 24 px; for "parquet", PNG files in a table."""
    rng, rows = np.random.default_rng(0), []
    for label, name in enumerate(("cat", "dog")):
        for number in range(per_class):
            small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            picture = small.resize((24, 24), Image.Resampling.BICUBIC)
            file = io.BytesIO()
            picture.save(file, PICTURES.get(suffix, "PNG"))
            if suffix == "parquet":
                rows.append({"image": {"bytes": file.getvalue(), "path": None}, "label": label})
            else:
                (folder / name).mkdir(parents=True, exist_ok=True)
                (folder / name / f"{number}.{suffix}").write_bytes(file.getvalue())
    if suffix == "parquet":
        import pyarrow
        from pyarrow import parquet

        folder.mkdir(parents=True)
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "train-0.parquet")


def digest(data: Data) -> str:
    """Of all pixels and labels."""
    found = hashlib.sha256()
    for split in (data.train, data.validation, data.test):
        found.update(split.labels.numpy().tobytes() + split.images(torch.arange(len(split))).numpy().tobytes())
    return found.hexdigest()


def prepare(run: str = "new", gib: float = 2.0) -> None:
    """What a first command does before it trains, on the folder `pictures`."""
    cfg = METHODS["oqat"].Config(precision="float32", batch_size=8)
    where = DataOptions(data="pictures", run=Path(run), resident_gib=gib, flip=False)
    _, run = runs.prepare(cfg, where, ModelOptions("nano", resolutions=(16,)), device="cpu")
    print("work begins", digest(run.data))


def reopen() -> None:
    """What a later command does first, after `prepare`."""
    print(digest(runs.open_run("new", data="pictures", device="cpu")[1].data))


OF_A_TABLE = (" of the train split", "pictures cannot be loaded")  # the row, or the folder of the table
OF_PICTURES = (
    Reader("prepare", lambda: prepare("another"), accepts=OF_A_TABLE),
    Reader("prepare, streamed", lambda: prepare("another", gib=0), accepts=OF_A_TABLE),
    Reader("reopen", reopen, accepts=("have changed", *OF_A_TABLE)),
)

# -- files of exports


def read_package() -> None:
    """`load_package`, and the answers of the network."""
    network = load_package(NETWORK)
    pixels = torch.arange(8 * 8 * 10, dtype=torch.float32).reshape(10, 1, 8, 8) % 256
    print(network(pixels).tolist(), network.graph.classes)


def verify_onnx() -> None:
    """What verification says of the ONNX file of a network; its graph is that of the package beside it."""
    graph, data = load_package(NETWORK).graph, runs.open_run("run", device="cpu")[1].data
    exported = Exported(graph, load_package(NETWORK.parent / "float-max").graph, NETWORK)
    images, labels = next(iter(eval_batches(data, data.test)))
    pixels = network_input(graph, images)
    floats = run_float(graph, pixels, float_parameters(graph))
    one = FORMATS["onnx"]
    counts = one.read(exported)(Batch(pixels, labels, floats, floats, run_integer(graph, pixels)))
    judged = one.judge(exported, counts, Common(len(labels), 0.0, 0.0, 1.0, 1, 1.0))
    if judged.problems:
        raise ValueError("; ".join(judged.problems))
    print(sorted(counts.items()))


# -- what users write


def write_user_files(folder: Path) -> None:
    """Architectures and tables of costs, for the run in a folder."""
    space = load_supernet(folder / "run", "2bit").space
    (folder / "arch.json").write_text(json.dumps(dict(space.smallest())))  # in one line, as `oncequant cost` reads it
    rows = [row for stage in ("4bit", "3bit", "2bit") for row in layer_rows(load_supernet(folder / "run", stage).space)]
    rows = list({tuple(row.values()): row for row in rows}.values())
    for number, row in enumerate(rows, start=1):
        row["us"] = number / 8
    write_csv(folder / "board.csv", rows)
    layers = [{**{key: row[key] for key in KEY}, "cost": row["us"]} for row in rows]
    write_json(folder / "phone.json", {"unit": "us", "layers": layers})
