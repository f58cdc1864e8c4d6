"""The smallest runs of all methods that still have every stage: undisturbed, a copy of the folder after each command.

What two undisturbed runs of the same commands do not have alike is said here, once: `IGNORED` and `TIMES`.
"""

import csv
import io
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trials import Counter, command, forked

IGNORED = re.compile(r"(^|/)(\.lock|times\.\w+)$|(^|/)tensorboard/|^compare")
"""Files that hold times and dates, or nothing."""
TIMES = frozenset({"time_s", "date", "latency_ms", "float_latency_ms", "c_latency_ms"})
"""Fields that hold times and dates in files of versions that have no files of their own for them."""

TRAINING = (
    "--epochs 1 --float-epochs 1 --min-steps 4 --batch-size 32 --calibration-images 64 --precision float32 "
    "--checkpoint-seconds 0 --max-train 64 --validation-fraction 0.05 --test-fraction 0.05 --device cpu"
)
ELASTIC = "--preset nano --width 0.5 --resolutions 8 --depths 1 --kernel-sizes 3 --expand-ratios 2 3 --random-subnets 1"
FILES = "--formats onnx package c"
COMMANDS: dict[str, dict[str, str]] = {
    "oqat": {
        "train": f"train oqat --run run {TRAINING} {ELASTIC}",
        "search": "search run --evaluations 4 --device cpu",
        "export": f"export run 4bit-L 2bit-L float-max {FILES} --device cpu",
        "report": "report run",
    },
    "qfa": {
        "train": f"train qfa --run run {TRAINING} {ELASTIC} --mixed-subnets 1",
        "search": "search run --evaluations 30 --population 8 --generations 2 --front-members 2 --device cpu",
        "export": f"export run mixed-L {FILES} --device cpu",
        "report": "report run",
    },
    "dnas": {
        "train": f"train dnas --run run {TRAINING} --samples 2 --jobs 1",
        "search": "search run --device cpu",
        "export": f"export run ME {FILES} --device cpu",
        "report": "report run",
    },
}


@dataclass(frozen=True)
class Step:
    """A command of an undisturbed run."""

    method: str
    name: str
    before: Path
    """The folder as it was before the command; in it is `run`."""
    after: Path
    cpu_s: float
    operations: tuple[str, ...]
    """What changed files, in order."""

    @property
    def words(self) -> list[str]:
        """The command."""
        return COMMANDS[self.method][self.name].split()


def undisturbed(out: Path, method: str, name: str) -> Step:
    """A step of a method, made once in `out` after those before it, in folders method/0, method/1, ..."""
    (out / method / "0").mkdir(parents=True, exist_ok=True)
    for number, (each, text) in enumerate(COMMANDS[method].items()):
        before, after = out / method / str(number), out / method / str(number + 1)
        known = out / method / f"{each}.json"
        if not known.exists():
            log = out / "operations"
            log.write_text("")
            ended = forked(command(text.split()), copied(before, after), Counter(log))
            if ended.status:
                raise SystemExit(f"undisturbed {text}: {ended.errors or ended.output}")
            known.write_text(json.dumps({"cpu_s": ended.cpu_s, "operations": log.read_text().splitlines()}))
        if each == name:
            break
    found = json.loads(known.read_text())
    return Step(method, name, before, after, found["cpu_s"], tuple(found["operations"]))


def copied(source: Path, target: Path) -> Path:
    """A folder at another place, in which nothing else is."""
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(source, target))


def differences(one: Path, other: Path) -> list[str]:
    """Files that two folders do not have alike, times and dates apart."""
    first, second = dict(_files(one)), dict(_files(other))
    return sorted(
        name
        for name in first.keys() | second.keys()
        if name not in first
        or name not in second
        or (first[name].read_bytes() != second[name].read_bytes() and content(first[name]) != content(second[name]))
    )


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not IGNORED.search(name.removeprefix("run/")):
            yield name, path


def content(path: Path) -> Any:
    """What a file says without times and dates."""
    raw = path.read_bytes()
    try:
        if path.suffix == ".json":
            return without_times(json.loads(raw))
        if path.suffix == ".jsonl":
            return [without_times(json.loads(line)) for line in raw.splitlines()]
        if path.suffix == ".csv":
            return [without_times(row) for row in csv.DictReader(io.StringIO(raw.decode()))]
        if path.suffix == ".safetensors":  # the order of the header's fields is chance in older versions
            size = int.from_bytes(raw[:8], "little")
            return json.loads(raw[8 : 8 + size]), raw[8 + size :]
        if path.suffix == ".html":
            data = re.search(r"const DATA = (.*?);</script>", raw.decode(), re.DOTALL)
            return without_times(json.loads(data[1])) if data else raw
    except ValueError:  # not what its name says: it has to be equal to the byte
        pass
    return raw


def without_times(value: Any) -> Any:
    """JSON without fields of times and dates, and without columns of latencies in tables of the report."""
    if isinstance(value, dict):
        if {"columns", "texts"} <= value.keys():
            timed = [i for i, title in enumerate(value["columns"]) if re.search(r"[Ll]atency|Speed|ms$", str(title))]
            value = {**value, "texts": [[t for i, t in enumerate(row) if i not in timed] for row in value["texts"]]}
        return {key: without_times(one) for key, one in value.items() if key not in TIMES}
    return [without_times(one) for one in value] if isinstance(value, list) else value
