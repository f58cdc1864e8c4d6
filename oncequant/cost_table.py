"""A cost from a table: what every layer takes on a device, measured there, such as microseconds.

The file has one row for each layer shape. As CSV, its header is the names in `KEY` and the unit of the numbers:

    role,in_channels,out_channels,kernel_size,stride,in_size,groups,weight_bits,act_bits,us
    stem,3,16,3,1,32,1,8,8,41.5

Lines that begin with # are comments, such as the device. As JSON, it is
`{"unit": "us", "layers": [{"role": "stem", ..., "cost": 41.5}, ...]}`; a `"label"` may stand beside.
The name of the file is the name of the cost: `phone.csv` makes budgets like `phone<=900`.

    phone = table_cost("phone.csv")
    config = SearchConfig(budgets=(Budget.parse("phone<=900", {**COSTS, "phone": phone}),))
    check_layers(space, phone)      # the first layer of the space that the table lacks, if there is one
    rows = layer_rows(space)        # what to measure, to make a table for a space

`expected_cost` serves DNAS with such costs: it averages the numbers of the candidates.
"""

import csv
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from oncequant.arch import LayerSpec, Number
from oncequant.cost import COSTS, Cost, Specs
from oncequant.files import FileError, read_object, write_atomically
from oncequant.space import SearchSpace

KEY = (
    "role",  # as in LayerSpec: stem, expand, depthwise, ...
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "in_size",  # height = width of the input map
    "groups",
    "weight_bits",  # 32 for float
    "act_bits",  # of the layer's input
)
SUFFIXES = ".csv", ".json"
FOLDER = "costs"  # of a run folder: the tables that its searches used
PROBES = 64  # architectures that tell which choices a layer depends on

Key = tuple[Any, ...]


class TableError(ValueError):
    """A table lacks a layer; the message names the file, the layer and the nearest layers that it has."""


def table_cost(path: Path | str) -> Cost:
    """The cost of a network by a table: the sum of the numbers of its layers. Raises FileError naming what is wrong.

    The cost takes ints and NumPy vectors. It raises TableError for specs with a layer that the table lacks. It is
    additive and neither monotone nor bilinear: a device is free to be slower with fewer channels or bits.
    """
    path = Path(path)
    check_name(path)
    unit, label, rows = _read_json(path) if path.suffix == ".json" else _read_csv(path)
    table: dict[Key, float] = {}
    for place, row in rows:
        try:
            key = (str(row["role"]), *(int(row[name]) for name in KEY[1:]))
            number = float(row["cost"])
        except (KeyError, TypeError, ValueError) as error:
            raise FileError(f"{path}, {place}: not a layer with {', '.join(KEY)} and a number ({error!r})") from None
        if not (math.isfinite(number) and number > 0):
            raise FileError(f"{path}, {place}: the cost is {number}; use a number above 0")
        if table.setdefault(key, number) != number:
            raise FileError(f"{path}, {place}: {describe(key)} has another cost in an earlier row")
    if not table:
        raise FileError(f"{path} has no layers")
    return Cost(path.stem, label, unit, partial(_sum, path, table), monotone=False, partial=True)


def check_name(path: Path) -> None:
    """Raise FileError if a file cannot give its name to a cost."""
    if not re.fullmatch(r"[A-Za-z_]\w*", path.stem) or path.stem in COSTS or path.suffix not in SUFFIXES:
        raise FileError(
            f"{path}: its name is the name of the cost, so it has letters, digits and underscores, is none of "
            f"{', '.join(COSTS)}, and ends with {' or '.join(SUFFIXES)}"
        )


def layer_variants(space: SearchSpace) -> Iterator[tuple[str, LayerSpec]]:
    """Every layer of a space with all forms it can have: a LayerSpec of vectors over them."""
    probes = space.sample_codes(np.random.default_rng(0), PROBES)
    probes[:2] = [space.encode(space.smallest()), space.encode(space.largest())]
    depends: dict[str, list[int]] = {name: [] for name in space.layers_batch(probes)}
    for column, count in enumerate(space.cardinalities):
        codes = np.repeat(probes, count, axis=0)
        codes[:, column] = np.tile(np.arange(count), PROBES)
        for name, spec in space.layers_batch(codes).items():
            values = np.stack(_columns(spec, len(codes))).reshape(-1, PROBES, count)
            if (values != values[..., :1]).any():
                depends[name].append(column)
    for name, columns in depends.items():
        combinations = list(product(*(range(space.cardinalities[column]) for column in columns)))
        codes = np.tile(space.encode(space.largest()), (len(combinations), 1))
        codes[:, columns] = np.array(combinations, dtype=np.int64).reshape(len(combinations), len(columns))
        yield name, space.layers_batch(codes)[name]


def layer_rows(space: SearchSpace) -> list[dict[str, Any]]:
    """The layers that networks of a space can have, each once: the rows of a table for it, still without costs."""
    keys: dict[Key, None] = {}
    for _, spec in layer_variants(space):
        keys.update(dict.fromkeys(keys_of(spec)[0]))
    return [dict(zip(KEY, key)) for key in keys]


def check_layers(space: SearchSpace, cost: Cost) -> None:
    """Raise TableError if a network of the space can have a layer that the table of a cost lacks."""
    if cost.partial:
        for name, spec in layer_variants(space):
            cost({name: spec})


# -- tables in run folders


def keep_table(path: Path, run_dir: Path) -> None:
    """Copy a table to a run folder, for later searches. Raises FileError if another one of its name is there."""
    table_costs([*kept_tables(run_dir), path])
    if not (kept := run_dir / FOLDER / path.name).exists():
        write_atomically(kept, path.read_bytes())


def kept_tables(run_dir: Path) -> list[Path]:
    """The tables in a run folder."""
    return sorted(path for path in (run_dir / FOLDER).glob("*") if path.suffix in SUFFIXES)


def table_costs(paths: Iterable[Path]) -> dict[str, Cost]:
    """By name: the costs of tables. Raises FileError, also for two tables of one name."""
    found: dict[str, tuple[Path, Cost]] = {}
    for path in paths:
        other, _ = found.setdefault(path.stem, (path, table_cost(path)))
        if other.read_bytes() != path.read_bytes():
            raise FileError(
                f"{other} is another table than {path}: costs of one name must stay comparable; rename {path.name}"
            )
    return {name: cost for name, (_, cost) in found.items()}


def run_costs(run_dir: Path) -> dict[str, Cost]:
    """By name: the costs of `COSTS`, and those of the tables in a run folder. Raises FileError."""
    return COSTS | table_costs(kept_tables(run_dir))


def known_costs(run_dir: Path | None, paths: Iterable[Path]) -> dict[str, Cost]:
    """By name: the costs of a run folder, if there is one, and those of tables. Raises FileError."""
    return COSTS | table_costs([*(kept_tables(run_dir) if run_dir else ()), *paths])


# -- lookup


def _sum(path: Path, table: Mapping[Key, float], specs: Specs) -> Number:
    total: Number = 0.0
    for name, spec in specs.items():
        keys, place = keys_of(spec)
        if missing := [key for key in keys if key not in table]:
            raise TableError(
                f"{path} lacks a layer: {name}, {describe(missing[0])}. The nearest that it has: "
                f"{'; '.join(describe(key) for key in _nearest(missing[0], table))}"
            )
        numbers = np.array([*(table[key] for key in keys), 0.0])  # the last is that of absent layers
        total = total + (numbers[place] if isinstance(place, np.ndarray) else float(numbers[place]))
    return total


def keys_of(spec: LayerSpec) -> tuple[list[Key], int | np.ndarray]:
    """Different keys of a layer, and the place among them of each architecture, (n,), or of the one; -1 if absent."""
    if not isinstance(spec.present, np.ndarray) and not any(isinstance(v, np.ndarray) for v in _numbers(spec)):
        return ([(spec.role, *_numbers(spec))], 0) if spec.present else ([], -1)
    present, *columns = _columns(spec)
    place = np.full(len(present), -1)
    if not present.any():
        return [], place
    rows, inverse = np.unique(np.stack(columns, axis=1)[present != 0], axis=0, return_inverse=True)
    place[present != 0] = inverse.reshape(-1)
    return [(spec.role, *row) for row in rows.tolist()], place


def _numbers(spec: LayerSpec) -> tuple[Number, ...]:
    """What the key has after the role."""
    return tuple(getattr(spec, name) for name in KEY[1:])


def _columns(spec: LayerSpec, n: int = 1) -> list[np.ndarray]:
    """`present` and the numbers of the key, vectors of one length, at least `n`."""
    return list(np.broadcast_arrays(spec.present, *_numbers(spec), np.empty(n)))[:-1]


def describe(key: Key) -> str:
    """ "expand 16 > 48, kernel 1, stride 1, input 8 x 8, groups 1, W4 A8"."""
    role, c_in, c_out, kernel, stride, size, groups, weight_bits, act_bits = key
    shape = f"{role} {c_in} > {c_out}, kernel {kernel}, stride {stride}, input {size} x {size}, groups {groups}"
    return f"{shape}, W{weight_bits} A{act_bits}"


def _nearest(key: Key, table: Mapping[Key, float], count: int = 3) -> list[Key]:
    """Keys that differ least: in few fields, and by small factors."""

    def distance(other: Key) -> tuple[int, float]:
        factors = [abs(math.log(max(a, 1) / max(b, 1))) for a, b in zip(key[1:], other[1:])]
        return sum(a != b for a, b in zip(key, other)), sum(factors)

    return sorted(table, key=distance)[:count]


# -- files


def _read_csv(path: Path) -> tuple[str, str, list[tuple[str, dict[str, Any]]]]:
    """Unit, label, and rows with their places."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        places = [number for number, line in enumerate(lines, start=1) if line.strip() and not line.startswith("#")]
        reader = csv.DictReader(lines[number - 1] for number in places)
        rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FileError(f"{path} is not a readable CSV file: {error}") from error
    header = reader.fieldnames or []
    others = [name for name in header if name not in KEY]
    if set(KEY) - set(header) or len(others) != 1:
        raise FileError(
            f"{path}: its header is {', '.join(header)}; it should be {', '.join(KEY)}, and the unit of costs"
        )
    numbered = zip(places[1:], rows)
    return others[0], path.stem, [(f"line {number}", {**row, "cost": row[others[0]]}) for number, row in numbered]


def write_table(path: Path, costs: Mapping[Key, float], unit: str, comments: Iterable[str] = ()) -> None:
    """Write a table as CSV, atomically. Raises FileError."""
    text = io.StringIO(newline="")
    text.writelines(f"# {line}\n" for line in comments)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*KEY, unit])
    writer.writerows([*key, f"{cost:.6g}"] for key, cost in costs.items())
    write_atomically(path, text.getvalue().encode())


def _read_json(path: Path) -> tuple[str, str, list[tuple[str, dict[str, Any]]]]:
    """Unit, label, and rows with their places."""
    values = read_object(path, "unit", "layers")
    if not isinstance(values["layers"], list):
        raise FileError(f"{path}: layers should be a list")
    rows = [(f"layer {i}", row) for i, row in enumerate(values["layers"], start=1)]
    return str(values["unit"]), str(values.get("label", path.stem)), rows
