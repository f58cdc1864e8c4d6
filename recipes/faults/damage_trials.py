"""Damaged inputs: each file that a command reads, mutated at random, and the commands that read it.

A command may give what it gives for the undamaged file, or refuse with one line that names the file. Some damage
leaves a right file with other content, such as another digit in JSON: it is `undetectable` without a checksum.
"""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from mutations import EXECUTED, is_well_formed, mutations_for
from readers import (
    NETWORK,
    OF_PICTURES,
    PICTURES,
    Reader,
    by_command,
    make_pictures,
    prepare,
    read_package,
    verify_onnx,
    write_user_files,
)
from small_runs import COMMANDS, copied, differences, undisturbed
from trials import Ended, command, end_at, forked


@dataclass(frozen=True)
class Case:
    """A file, in a folder of the name `base`, and what reads it."""

    base: str
    file: str
    readers: tuple[Reader, ...]
    has_checksum: bool = False
    """So no change of its content may pass."""


INFO, REPORT = by_command("info run", prints=True), by_command("report run")
EVALUATE = by_command("evaluate run largest --device cpu", prints=True)
SEARCH = by_command("search run --evaluations 4 --device cpu")
TRAIN = Reader("train", command(COMMANDS["oqat"]["train"].split()), prints=False)
PACKAGE = Reader("load_package", read_package)
COST = "cost --preset nano --width 0.5"

CASES = (
    *(Case(f"pictures-{suffix}", f"pictures/cat/3.{suffix}", OF_PICTURES) for suffix in PICTURES),
    Case("pictures-parquet", "pictures/train-0.parquet", OF_PICTURES),
    Case("oqat", "run/run.json", (INFO, REPORT, EVALUATE, TRAIN)),
    Case(
        "oqat",
        "run/family.json",
        (INFO, REPORT, by_command("evaluate run 4bit-L", True), by_command("export run 4bit-L --formats package")),
    ),
    Case("oqat", "run/exports.json", (REPORT, SEARCH)),
    Case("oqat", "run/measurements.jsonl", (REPORT, SEARCH)),
    Case("training", "run/metrics.jsonl", (REPORT, TRAIN)),
    Case("oqat", "run/commands.jsonl", (INFO, REPORT, SEARCH)),
    Case("oqat", "run/2bit.safetensors", (EVALUATE, REPORT, SEARCH)),
    Case("oqat", "run/4bit.safetensors", (by_command("evaluate run 4bit-L", True), SEARCH)),
    Case("training", "run/2bit.resume.pt", (TRAIN,)),
    Case("oqat", f"{NETWORK}/model.json", (PACKAGE,), has_checksum=True),
    Case("oqat", f"{NETWORK}/model.safetensors", (PACKAGE,), has_checksum=True),
    Case("oqat", f"{NETWORK}/model.onnx", (Reader("verify", verify_onnx),)),
    Case("oqat", "arch.json", (by_command("evaluate run arch.json", True), by_command(f"{COST} arch.json", True))),
    Case("oqat", "board.csv", (by_command(f"{COST} --bits 2 --edge-bits 8 --se-bits 8 --costs board.csv arch.json"),)),
    Case("oqat", "phone.json", (by_command("search run --evaluations 4 --costs phone.json --budget phone<=90"),)),
    Case("qfa", "run/predictor.json", (REPORT,)),
    Case("qfa", "run/predictor.safetensors", (by_command("search run --budget weight_bytes<=7000"),)),
    Case("qfa", "run/mixed.safetensors", (EVALUATE,)),
    Case("dnas", "run/samples.json", (by_command("search run"),)),
    Case("dnas", "run/distribution.jsonl", (REPORT,)),
    Case("dnas", "run/search.safetensors", (REPORT, by_command("search run"))),
)


def trials(out: Path, count: int, seed: int, skip: set[int]) -> Iterator[dict[str, Any]]:
    """The rows of the trials that are not in `skip`."""
    for trial in set(range(count)) - skip:
        case = CASES[trial % len(CASES)]
        reader = case.readers[trial // len(CASES) % len(case.readers)]
        rng = np.random.default_rng([seed, 3, trial])
        yield one_trial(out, trial, case, reader, rng)


def one_trial(out: Path, trial: int, case: Case, reader: Reader, rng: np.random.Generator) -> dict[str, Any]:
    """Damage a file, read it, judge."""
    intact, expected = undamaged(out, case.base, reader)
    folder = copied(base(out, case.base), out / "damage")
    path = folder / case.file
    before, after = path.read_bytes(), path.read_bytes()
    possible = mutations_for(path)
    while after == before:
        mutate = possible[rng.integers(len(possible))]
        after = mutate(before, rng)
    path.write_bytes(after)
    ended = forked(reader.action, folder, limit_s=120)
    if ended.status == 0 and (not reader.prints or ended.output == intact.output):
        different = [name for name in differences(folder, expected) if name != case.file]
    else:
        different = ["what it prints"]
    well_formed = not case.has_checksum and is_well_formed(before, after, path)
    return {
        "part": "damage",
        "trial": trial,
        "command": f"{reader.name} ({case.base})",
        "moment": f"{case.file}: {mutate.__name__}",
        "outcome": judged(ended, (folder / EXECUTED).exists(), path, reader, different, well_formed),
        "seconds": round(ended.cpu_s, 2),
    }


def judged(ended: Ended, executed: bool, path: Path, reader: Reader, different: list[str], well_formed: bool) -> str:
    """One word for what must come of damage; else the word and what happened."""
    said = ended.output + ended.errors
    if executed:
        return "code run"
    if ended.status is None or ended.status < 0:
        return "hang" if ended.status is None else f"crash: signal {-ended.status}"
    if ended.has_traceback:
        return f"traceback: {ended.brief}"
    if ended.status:
        named = any(ended.is_one_line(text) for text in (path.name, *reader.accepts))
        late = "work begins" in ended.output
        return f"late: {ended.brief}" if late else "refused" if named else f"unnamed: {ended.brief}"
    if not different:
        return "equal"
    if path.name in said.replace("\n", ""):
        return "noted"
    return "undetectable" if well_formed else f"silent: {', '.join(different)}"


@cache
def base(out: Path, name: str) -> Path:
    """The folder that trials copy; made once in `out`."""
    folder = out / f"base-{name}"
    if folder.exists():
        return folder
    new = out / "base-new"
    if name.startswith("pictures-"):
        shutil.rmtree(new, ignore_errors=True)
        make_pictures(new / "pictures", name.removeprefix("pictures-"))
        must(forked(prepare, new))
    elif name == "training":
        step = undisturbed(out, "oqat", "train")
        last = max(i for i, operation in enumerate(step.operations) if operation == "rename run/2bit.resume.pt")
        forked(command(step.words), copied(step.before, new), hook=end_at(last + 2))
    else:
        copied(undisturbed(out, name, "report").after, new)
        if name == "oqat":
            must(forked(partial(write_user_files, new), new))
    new.rename(folder)
    return folder


def must(ended: Ended) -> None:
    """Stop if something without a fault fails."""
    if ended.status:
        raise SystemExit(ended.errors or ended.output)


@cache
def undamaged(out: Path, name: str, reader: Reader) -> tuple[Ended, Path]:
    """What a reader says of undamaged files, and the folder then."""
    kept = out / "expected" / f"{name}-{re.sub(r'[^a-z0-9]+', '-', reader.name)[:60]}"
    place = copied(base(out, name), out / "damage")  # files hold the path
    ended = forked(reader.action, place)
    must(ended)
    return ended, copied(place, kept)
