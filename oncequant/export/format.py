"""What a format of exported files is: how a network is written, and how what was written is judged.

A format is one file of this package and one line in `FORMATS` (`oncequant/export/formats.py`). The command line, the
verification of exports, tables and the report take it from there. `tests/test_formats.py` tests every format that is
listed: what it writes is judged without problems, and damaged files are found.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from oncequant.export.graph import Graph

CARD_FILES = ("README.md", "config.json")
"""Files that `oncequant card` writes about an export; they go when it is made anew."""

Row = Mapping[str, Any]
"""What verification found of a network, flat: `Export.found`. Old files may lack keys."""


@dataclass(frozen=True)
class Batch:
    """Test images, and what networks that are not files answer to them."""

    pixels: Tensor
    """(N, C, R, R), raw, 0..255: what every format is fed."""
    labels: Tensor
    """(N,)."""
    plain: Tensor
    """(N, classes), logits of the trained subnet in PyTorch, before the 8-bit grids between layers."""
    floats: Tensor
    """(N, classes), logits of the graph with every operation in float32 (`run_float`)."""
    simulated: Tensor
    """(N, classes), logits of the integer simulator (`run_integer`)."""


@dataclass(frozen=True)
class Exported:
    """A network, and the folder where a format has written it."""

    graph: Graph
    float_graph: Graph
    """The same architecture in float, to compare sizes and times with."""
    folder: Path


@dataclass(frozen=True)
class Common:
    """What verification finds before it looks at files."""

    images: int
    top1_plain: float
    """The trained subnet in PyTorch, before the 8-bit grids between layers."""
    top1_simulated: float
    """The integer simulator."""
    ideal_bytes: float
    """Sum over layers of weights x bits / 8."""
    low_bit_bytes: int
    """Packed weights of the layers below 8 bits."""
    low_bit_ideal_bytes: float


class Judgement(Protocol):
    """What was found of the files of one format: a frozen dataclass with these fields, and with more of its own."""

    @property
    def bytes(self) -> int:
        """Of all files of the format together."""

    @property
    def top1(self) -> float:
        """On the test images, of the network as its files are meant to be run."""

    @property
    def problems(self) -> tuple[str, ...]:
        """Why the files cannot be trusted; empty if they can."""


@dataclass(frozen=True)
class Format:
    """A format of exported files.

    Its functions import what they need beyond the core packages when they are called. So formats can be listed where
    these packages are missing.
    """

    name: str
    """As the command line has it."""
    files: tuple[str, ...]
    """Names of its files in the folder of an export; no other format has them."""
    write: Callable[[Graph, Path], None]
    """`write(graph, folder)` writes each file atomically, and replaces what is there. Raises FileError."""
    read: Callable[[Exported], Callable[[Batch], Counter[str]]]
    """Reads the files once; what it returns runs them on one batch and counts images by whatever name the judge needs.
    Raises FileError naming the file if one is missing, cut off or something else."""
    judge: Callable[[Exported, Counter[str], Common], Judgement]
    """From the counts over all batches. What else there is to measure of the files, such as latency, it measures."""
    keys: Mapping[str, str]
    """The fields of its judgement without `problems`, and their keys in flat files. Keys are of one format only."""
    columns: Mapping[str, Callable[[Row], str]] = field(default_factory=dict)
    """What tables say of the files, by title: a text made of a row, "–" where the row lacks a key."""
    times: tuple[str, ...] = ()
    """Keys of times, which no two verifications find alike: files have them in `times.json`, apart from the rest."""
    time_columns: Mapping[str, Callable[[Row], str]] = field(default_factory=dict)
    """Columns that are made of times."""
    brief: tuple[str, ...] = ()
    """The columns that fit on a terminal."""
    notes: str = ""
    """Sentences for the reader of the columns."""
    packages: tuple[str, ...] = ()
    """Python packages that it needs beyond the core."""
    refuses: Callable[[Graph], str] = lambda graph: ""
    """Why it cannot hold a network, naming the layer, or ""."""
    lacks: Callable[[], str] = lambda: ""
    """What this machine lacks to judge its files, such as a compiler, or ""."""
    packed: bool = True
    """Weights below 8 bits take less room in its files than those of 8 bits."""
    default: bool = True
    """Written where no formats are named."""

    def flat(self, judgement: Judgement) -> dict[str, float]:
        """A judgement as files have it, without its problems and what was not measured."""
        found = {key: getattr(judgement, name) for name, key in self.keys.items()}
        return {key: value for key, value in found.items() if value is not None}


def text(value: Any, form: Callable[[Any], str]) -> str:
    """`form(value)`, or "–" for None: a cell of a table."""
    return "–" if value is None else form(value)
