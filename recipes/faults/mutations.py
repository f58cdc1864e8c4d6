"""Damage to files: of bytes, and of JSON that stays JSON. Everything depends on the random generator alone."""

import io
import json
import math
import os
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from oncequant.records import Metrics, read_records

Random = np.random.Generator
EXECUTED = "executed"
"""File that a pickle makes where it is executed."""


def _place(content: bytes, rng: Random, length: int = 0) -> int:
    return int(rng.integers(0, max(1, len(content) - length)))


def flip(content: bytes, rng: Random) -> bytes:
    """One bit."""
    changed, at = bytearray(content), _place(content, rng)
    changed[at] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def flips(content: bytes, rng: Random) -> bytes:
    """Twenty bits."""
    for _ in range(20):
        content = flip(content, rng)
    return content


def flip_in_head(content: bytes, rng: Random) -> bytes:
    """One bit of the first 64 bytes."""
    return flip(content[:64], rng) + content[64:]


def truncated(content: bytes, rng: Random) -> bytes:
    """The end is missing."""
    return content[: _place(content, rng)]


def nearly_whole(content: bytes, rng: Random) -> bytes:
    """The last few bytes are missing."""
    return content[: -int(rng.integers(1, 9))]


def empty(content: bytes, rng: Random) -> bytes:
    """Nothing is left."""
    return b""


def zeroed(content: bytes, rng: Random) -> bytes:
    """A block of zeros, as after a crash of the machine."""
    size = min(len(content), int(rng.integers(1, 513)))
    at = _place(content, rng, size)
    return content[:at] + bytes(size) + content[at + size :]


def swapped(content: bytes, rng: Random) -> bytes:
    """Two blocks changed places."""
    size = max(1, min(len(content) // 4, int(rng.integers(1, 513))))
    a, b = sorted((_place(content, rng, size), _place(content, rng, size)))
    b = max(b, a + size)
    return content[:a] + content[b : b + size] + content[a + size : b] + content[a : a + size] + content[b + size :]


def inserted(content: bytes, rng: Random) -> bytes:
    """Random bytes in between."""
    at = _place(content, rng)
    return content[:at] + rng.bytes(int(rng.integers(1, 65))) + content[at:]


def doubled(content: bytes, rng: Random) -> bytes:
    """The whole file twice."""
    return content + content


def foreign(content: bytes, rng: Random) -> bytes:
    """A file of another kind: a pickle that executes code where it is loaded as one."""
    return pickle.dumps(_Payload())


def random_bytes(content: bytes, rng: Random) -> bytes:
    """As long as it was."""
    return rng.bytes(len(content))


class _Payload:
    def __reduce__(self) -> tuple:
        return os.mkdir, (EXECUTED,)


def hostile_archive(content: bytes, rng: Random) -> bytes:
    """A file of torch.save that executes code where it is loaded without care."""
    import torch

    file = io.BytesIO()
    torch.save({"step": 1, "settings": _Payload()}, file)
    return file.getvalue()


BYTES: tuple[Callable[[bytes, Random], bytes], ...] = (
    flip, flips, flip_in_head, truncated, nearly_whole, empty, zeroed, swapped, inserted, doubled, foreign, random_bytes
)  # fmt: skip

# -- JSON


WRONG: tuple[Any, ...] = (
    None, True, "text", "", -1, 0, 2, 10**30, -(10**400), 1e308, float("nan"), float("inf"), 0.5, [], {}, [[]],
    {"a": 1}, "\ud800", "../../x", "\x1b[2J", "x" * 10000
)  # fmt: skip


def json_value(content: bytes, rng: Random) -> bytes:
    """One value is of another type, or impossible."""
    value = json.loads(content)
    holder, key = _node(value, rng)
    if holder is None:
        return json.dumps(WRONG[rng.integers(len(WRONG))]).encode()
    holder[key] = WRONG[rng.integers(len(WRONG))]
    return json.dumps(value).encode()


def json_number(content: bytes, rng: Random) -> bytes:
    """One number is another one: a digit was lost, say."""
    value = json.loads(content)
    nodes = [(h, k) for h, k in _nodes(value) if isinstance(h[k], int | float) and not isinstance(h[k], bool)]
    if not nodes:
        return json_value(content, rng)
    holder, key = nodes[rng.integers(len(nodes))]
    old = holder[key]
    holder[key] = (old * 10, old / 10, -old, old + 1, 1 - old, math.nan, 10**25)[rng.integers(7)]
    return json.dumps(value).encode()


def json_key(content: bytes, rng: Random) -> bytes:
    """A key or an entry of a list is missing."""
    value = json.loads(content)
    holder, key = _node(value, rng)
    if holder is not None:
        del holder[key]
    return json.dumps(value).encode()


def json_renamed(content: bytes, rng: Random) -> bytes:
    """A key has another name."""
    value = json.loads(content)
    nodes = [(h, k) for h, k in _nodes(value) if isinstance(h, dict)]
    if nodes:
        holder, key = nodes[rng.integers(len(nodes))]
        holder[f"{key}x"] = holder.pop(key)
    return json.dumps(value).encode()


def json_twice(content: bytes, rng: Random) -> bytes:
    """A key is there twice, with two values."""
    value = json.loads(content)
    holder, key = _node(value, rng)
    if not isinstance(holder, dict):
        return json.dumps([value, value]).encode()
    mark = "twice-here"
    holder[key] = {mark: holder[key]}
    text = json.dumps(value)
    old = json.dumps(holder[key])
    return text.replace(old, f"{json.dumps(holder[key][mark])}, {json.dumps(key)}: 7", 1).encode()


def json_deep(content: bytes, rng: Random) -> bytes:
    """A value is nested so deeply that a recursive reader fails."""
    value = json.loads(content)
    holder, key = _node(value, rng)
    deep = "[" * 100_000 + "]" * 100_000
    if holder is None:
        return deep.encode()
    holder[key] = "deep-here"
    return json.dumps(value).replace('"deep-here"', deep, 1).encode()


JSON = (json_value, json_value, json_number, json_key, json_renamed, json_twice, json_deep)


def in_a_line(mutate: Callable[[bytes, Random], bytes]) -> Callable[[bytes, Random], bytes]:
    """The same in one line of a file of JSON lines."""

    def changed(content: bytes, rng: Random) -> bytes:
        lines = content.splitlines()
        at = int(rng.integers(len(lines)))
        lines[at] = mutate(lines[at], rng)
        return b"\n".join(lines) + b"\n"

    changed.__name__ = mutate.__name__
    return changed


def line_lost(content: bytes, rng: Random) -> bytes:
    """A line is missing."""
    lines = content.splitlines(keepends=True)
    del lines[int(rng.integers(len(lines)))]
    return b"".join(lines)


def _nodes(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a JSON value: what holds it, and its key there."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, one in pairs for place in [(value, key), *_nodes(one)]]


def _node(value: Any, rng: Random) -> tuple[Any, Any]:
    nodes = _nodes(value)
    return nodes[rng.integers(len(nodes))] if nodes else (None, None)


def mutations_for(path: Path) -> tuple[Callable[[bytes, Random], bytes], ...]:
    """What can happen to a file of this kind, each as likely as the others."""
    if path.suffix == ".json":
        return (*JSON, *BYTES)
    if path.suffix == ".jsonl":
        return (*map(in_a_line, JSON), line_lost, *BYTES)
    if path.suffix == ".pt":
        return (*BYTES, hostile_archive, hostile_archive)
    return BYTES


# -- what a file can know of itself


def is_well_formed(before: bytes, after: bytes, path: Path) -> bool:
    """Whether a changed file is a right one with other content, which nobody can tell who has no checksum of it."""
    try:
        if path.name == "run.json":  # older versions lack options, which are the default then
            return _is_part(json.loads(after), json.loads(before))
        if path.suffix == ".json":
            return _shape(json.loads(before)) == _shape(json.loads(after))
        if path.name == "metrics.jsonl":  # names of metrics are free
            read_records(path, Metrics)
            return True
        if path.suffix == ".jsonl":
            shapes = {repr(_shape(json.loads(line))) for line in before.splitlines()}
            *lines, _ = after.split(b"\n")
            return {repr(_shape(json.loads(line))) for line in lines} <= shapes
        if path.suffix == ".safetensors":
            return _header(before) == _header(after) and len(before) == len(after)
        if path.suffix == ".png":
            return _png_is_whole(after)
    except (ValueError, OSError, RecursionError, IndexError):
        return False
    return True


def _shape(value: Any) -> Any:
    """Keys and types of a JSON value, with which of its numbers are finite."""
    if isinstance(value, dict):
        return {key: _shape(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_shape(value[0])] if value and all(_shape(one) == _shape(value[0]) for one in value) else list(
            map(_shape, value)
        )  # fmt: skip
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "number" if math.isfinite(value) else "no number"
    return type(value).__name__


def _is_part(value: Any, whole: Any) -> bool:
    """Whether every key is one of another JSON value, and holds something of the same type."""
    if isinstance(value, dict) and isinstance(whole, dict):
        return all(key in whole and _is_part(one, whole[key]) for key, one in value.items())
    return isinstance(value, list) and isinstance(whole, list) or _shape(value) == _shape(whole)


def _header(content: bytes) -> Any:
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


def _png_is_whole(content: bytes) -> bool:
    """Whether every chunk has its right checksum."""
    if content[:8] != b"\x89PNG\r\n\x1a\n":
        return False
    at, kind = 8, b""
    while at < len(content):
        size, kind = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        chunk = content[at + 4 : at + 8 + size]
        if zlib.crc32(chunk) != int.from_bytes(content[at + 8 + size : at + 12 + size], "big") or len(chunk) < 4:
            return False
        at += 12 + size
        if kind == b"IEND":
            break
    return kind == b"IEND"
