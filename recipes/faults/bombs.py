"""Huge pictures among ordinary ones, with an address space of 1 GiB beyond what the program itself takes."""

import resource
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from readers import make_pictures, prepare
from small_runs import copied
from trials import forked

ROOM = 2**30  # bytes
SIDE = 14_143  # 200 megapixels


def _save(mode: str, path: Path) -> None:
    Image.new(mode, (SIDE, SIDE), 128 if mode == "L" else (200, 100, 50)).save(path)


def _bomb(path: Path) -> None:
    """A few bytes that say they are 3.6 gigapixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1000), 9)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


KINDS: tuple[tuple[str, Callable[[Path], None]], ...] = (
    ("bomb.png", _bomb),
    ("huge.png", partial(_save, "L")),
    ("huge.jpg", partial(_save, "RGB")),
    ("huge-colour.png", partial(_save, "RGB")),
)


def trials(out: Path, count: int, seed: int, skip: set[int]) -> Iterator[dict[str, Any]]:
    """The rows of the trials that are not in `skip`."""
    for trial in set(range(min(count, len(KINDS)))) - skip:
        yield one_trial(out, trial, *KINDS[trial])


def one_trial(out: Path, trial: int, name: str, make: Callable[[Path], None]) -> dict[str, Any]:
    """Read a folder with one huge picture."""
    folder = out / "bomb"
    copied(_ordinary(out), folder)
    forked(partial(make, folder / "pictures" / "cat" / name), folder)
    ended = forked(_measured, folder, before=_limit)
    peak = ended.output.rpartition("peak MiB ")[2].strip()
    if ended.status == 0:
        outcome = "read"
    else:
        outcome = "refused" if ended.is_one_line(name) else f"message: {ended.brief}"
    return {
        "part": "memory",
        "trial": trial,
        "command": "prepare",
        "moment": f"{name}, {ROOM >> 20} MiB of room, {peak} MiB used at most",
        "outcome": outcome,
        "seconds": round(ended.cpu_s, 2),
    }


def _ordinary(out: Path) -> Path:
    folder = out / "base-bombs"
    if not folder.exists():
        make_pictures(folder / "pictures", "png")
    return folder


def _limit() -> None:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    size = _memory("VmSize") * 1024 + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def _measured() -> None:
    before = _memory("VmRSS")
    try:
        prepare()
    finally:
        print("peak MiB", max(0, _memory("VmHWM") - before) >> 10)


def _memory(name: str) -> int:
    """KiB, of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
