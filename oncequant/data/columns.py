"""Which column of a table has the pictures, and which their labels."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from oncequant.data.names import Reading, listed, splits_of, words_of
from oncequant.images import DataError

IMAGE_NAMES = ("image", "img", "picture", "photo", "pixel_values", "pixels", "jpg", "jpeg", "png", "file_name", "file")
LABEL_NAMES = ("label", "labels", "class", "category", "target")
SPLIT_NAMES = frozenset(["split", "set", "subset", "partition", "usage"])
INDEX_NAMES = frozenset(["id", "idx", "index", "row", "number", "no"])


def typed(table: Any) -> str:
    """The columns of a table and their types, for a message."""
    features = table.features
    kinds = {name: getattr(feature, "dtype", None) or feature for name, feature in features.items()}
    for name, feature in features.items():
        if type(feature).__name__ in ("Image", "ClassLabel"):
            kinds[name] = type(feature).__name__
        elif isinstance(feature, dict):
            kinds[name] = f"struct of {', '.join(feature)}"
    return f"the columns are {listed((f'{name!r}: {kind}' for name, kind in kinds.items()), 12)}"


def choose_image(table: Any, able: list[str], what: str, reading: Reading, notes: list[str]) -> str:
    """The column of pictures among those that are `able` to be it. Raises DataError."""
    if wanted := reading.image_column:
        if wanted not in able:
            known = "holds no images" if wanted in table.features else "is not there"
            raise DataError(f"{what}: the image column {wanted!r} {known}; {typed(table)}")
        return wanted
    if not able and (lists := _pixel_columns(table)):
        raise DataError(
            f"{what}: holds pixels as numbers ({listed(map(repr, lists), 3)}), which is not read; save them as "
            f"pictures in a folder for each class, or as encoded bytes; {typed(table)}"
        )
    if len(able) != 1:
        named = [name for wanted in IMAGE_NAMES for name in able if name.lower() == wanted]
        first = [name for name in able if words_of(name)[:1] and words_of(name)[0] in IMAGE_NAMES]
        if not named and len(first) != 1:
            raise DataError(
                f"{what}: {len(able)} columns, not 1, hold images (Image, struct of bytes and path, encoded bytes, or "
                f"paths of files); {typed(table)}; name one with --image-column"
            )
        chosen = (named or first)[0]
        left = [name for name in able if name != chosen]
        notes.append(f"{what}: column {chosen!r} is taken for the images, not {listed(left)} (--image-column)")
        return chosen
    return able[0]


def choose_label(table: Any, image: str, what: str, reading: Reading, notes: list[str], others: Iterable[str]) -> str:
    """The column of labels: the one asked for; a ClassLabel; one that is called label, class, category or target; of a
    fine and a coarse one the fine; the only one that may hold labels. `others` are known to be none.

    Raises DataError that lists the columns where that leaves none or several."""
    features = table.features
    if wanted := reading.label_column:
        if wanted not in features or wanted == image:
            raise DataError(f"{what}: the label column {wanted!r} is not there; {typed(table)}")
        if not _may_be_label(table, wanted, features[wanted]):
            raise DataError(f"{what}: the column {wanted!r} has no boolean, whole or text labels; {typed(table)}")
        return wanted
    left = [n for n, f in features.items() if n != image and n not in set(others) and _may_be_label(table, n, f)]
    pool = [name for name in left if type(features[name]).__name__ == "ClassLabel"] or left
    chosen = [name for wanted in LABEL_NAMES for name in pool if name.lower() == wanted]
    if not chosen:
        if pool is left:
            pool = [name for name in left if not _is_index(table, name) and _distinct(table, name) > 1]
        chosen = pool if len(pool) == 1 else [n for n in pool if _is_finest(n, pool)] or _same_classes(table, pool)
    if chosen:
        rivals = [name for name in pool if name != chosen[0]]
        if rivals and chosen[0].lower() != "label":  # what everybody expects needs no words
            notes.append(f"{what}: column {chosen[0]!r} is taken for the labels, not {listed(rivals)} (--label-column)")
        return chosen[0]
    raise DataError(
        f"{what}: {len(pool)} columns, not 1, may hold labels (ClassLabel, else boolean, whole numbers or text), and "
        f"none is called 'label'; {typed(table)}; name one with --label-column"
    )


def _may_be_label(table: Any, name: str, feature: Any) -> bool:
    """Whether a column holds booleans, whole numbers (also as floats) or text."""
    if type(feature).__name__ == "ClassLabel":
        return True
    kind = str(getattr(feature, "dtype", ""))
    if re.fullmatch(r"bool|u?int\d+|(large_)?string(_view)?", kind):
        return True
    if kind.startswith("float"):
        import pyarrow.compute as pc

        values = pc.drop_null(column(table, name).cast("float64"))
        values = values.filter(pc.is_finite(values))
        return len(values) > 0 and bool(pc.all(pc.equal(pc.floor(values), values)).as_py())
    return False


def missing_labels(table: Any, name: str) -> int:
    """How many rows have no label: null, NaN, or an empty text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    values = column(table, name)
    count = values.null_count
    if pa.types.is_floating(values.type):
        count += pc.sum(pc.is_nan(values)).as_py() or 0
    elif pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        count += pc.sum(pc.equal(values, "")).as_py() or 0
    return count


def split_column(table: Any) -> tuple[str, dict[str, str]] | None:
    """A column that tells the split of each row, and the split that each of its values names."""
    for name, feature in table.features.items():
        if name.lower() in SPLIT_NAMES and str(getattr(feature, "dtype", "")).endswith("string"):
            values = [value for value in column(table, name).unique().to_pylist() if value]
            splits = splits_of(values)
            if values and len(splits) == len(values):
                return name, splits
    return None


def column(table: Any, name: str) -> Any:
    """The values of a column as a pyarrow array."""
    return table.select_columns([name]).with_format("arrow")[:].column(name)


def _pixel_columns(table: Any) -> list[str]:
    """Columns that look like pixels: lists of numbers, text of numbers, or hundreds of columns of numbers."""
    found = []
    for name, feature in table.features.items():
        kind = type(feature).__name__
        if kind in ("List", "LargeList", "Sequence", "Array2D", "Array3D", "list"):
            found.append(name)
        elif str(getattr(feature, "dtype", "")).endswith("string") and len(table):
            found += [name] if re.fullmatch(r"[\[\s]*(\d+[\s,]+){15,}.*", str(table[0][name])[:200], re.DOTALL) else []
    numbers = [n for n, f in table.features.items() if re.match("u?int|float", str(getattr(f, "dtype", "")))]
    return found or (numbers if len(numbers) >= 64 else [])


def _distinct(table: Any, name: str) -> int:
    import pyarrow.compute as pc

    return pc.count_distinct(column(table, name)).as_py()


def _is_index(table: Any, name: str) -> bool:
    """Whether a column numbers or names the rows: it is called so, has no name, or all its values differ."""
    index = name.lower() in INDEX_NAMES or not words_of(name) or re.match("unnamed|__index", name.lower())
    return bool(index) or (len(table) > 2 and _distinct(table, name) == len(table))


def _is_finest(name: str, among: list[str]) -> bool:
    """Whether a name says "fine" where another says "coarse"."""
    words = words_of(name)
    others = [words_of(other) for other in among if other != name]
    return "fine" in words and all("coarse" in other for other in others)


def _same_classes(table: Any, names: list[str]) -> list[str]:
    """Of columns that tell the same classes, as numbers and as names, the names; [] if they tell different ones."""
    if not 1 < len(names) < 5:
        return []
    rows = table.select_columns(names).with_format("arrow")[:]
    counts = {rows.group_by(keys).aggregate([]).num_rows for keys in (names, *([name] for name in names))}
    texts = [name for name in names if str(table.features[name].dtype).endswith("string")]
    return (texts or names)[:1] if len(counts) == 1 else []
