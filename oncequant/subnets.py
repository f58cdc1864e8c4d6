"""Subnets of a run: found by name, measured on its images or on others, exported."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch

from oncequant.answers import Answers, joined
from oncequant.arch import Arch
from oncequant.data import Data, ResidentSplit, eval_batches, other_images
from oncequant.data import Split as Images
from oncequant.data.sources import open_source
from oncequant.export.formats import DEFAULT_FORMATS, check_tools
from oncequant.files import FileError, read_object, user_path
from oncequant.measure import Judge, measure
from oncequant.methods import METHODS, method_of
from oncequant.network import Network
from oncequant.records import Export, Member, read_records
from oncequant.run_folder import Run, RunSettings
from oncequant.search.family import Pick, hand_out
from oncequant.search.measurements import all_costs
from oncequant.supernet_file import load_supernet
from oncequant.train import TrainingOptions

Split = Literal["train", "validation", "test"]


def family_of_run(folder: Path) -> list[Member]:
    """The members that searches of a run have chosen. Raises FileError."""
    return read_records(folder / "family.json", Member)


def outdated_exports(folder: Path) -> list[str]:
    """Folders of exports whose names stand for other members by now, or for none. Raises FileError."""
    members = {member.name: member for member in family_of_run(folder)}
    exports = read_records(folder / "exports.json", Export)
    return [one.folder for one in exports if not one.is_of(members.get(one.name))]


def is_arch(text: str) -> bool:
    """Whether this stands for an architecture by itself, not as the name of a chosen subnet."""
    return text in ("largest", "smallest") or user_path(text).is_file()


def subnet(cfg: TrainingOptions, folder: Path, text: str, stage: str | None = None) -> tuple[str, Network, Arch]:
    """Stage, supernet and architecture of a chosen subnet, a JSON file, "largest" or "smallest"; by default of the last
    stage. Raises ValueError if there is no such subnet, FileError if the stage is not trained."""
    family = {member.name: member for member in family_of_run(folder)}
    if text not in family and not is_arch(text):
        names = ", ".join(["largest", "smallest", *family])
        raise ValueError(f"architecture {text!r} is neither a file nor one of {names}")
    last = METHODS[method_of(cfg)].stages(cfg)[-1]
    stage = stage or (family[text].stage if text in family else last)
    supernet = load_supernet(folder, stage)
    if text in family:
        values = family[text].arch
    elif text in ("largest", "smallest"):
        values = getattr(supernet.space, text)()
    else:
        try:
            values = Arch.from_json(user_path(text).read_text())
        except ValueError as error:
            raise ValueError(f"{text}: {error}") from error
    return stage, supernet, supernet.space.complete(values)


def evaluate(
    cfg: TrainingOptions,
    run: Run,
    arch: str,
    stage: str | None = None,
    split: Split | None = None,
    compiled: bool = False,
    data: Any = None,
) -> dict[str, Any]:
    """See `oncequant.runs.evaluate_run`."""
    stage, supernet, values = subnet(cfg, run.folder, arch, stage)
    supernet.on(run.data.device)
    costs = all_costs(supernet.space, values, run.costs)
    parts: dict[str, Images]
    if data is not None and not (isinstance(data, Data) and data.fingerprint == run.data.fingerprint):
        others = other_images(data, run.data, split)
        parts, about = dict(others.parts), {"split": split or "all", "images": len(others), **others.about()}
    else:
        split = split or "validation"
        parts = {split: getattr(run.data, split)}
        about = {"split": split, "images": len(parts[split])}
    times = {}
    if compiled:
        from oncequant.export.compiled import evaluate_compiled

        each = [evaluate_compiled(run.folder / "exports" / arch, run.data, part) for part in parts.values()]
        answers, times = joined([found for found, _ in each]), {"compiled_ms": each[-1][1]}
    else:
        batches = chain.from_iterable(eval_batches(run.data, part) for part in parts.values())
        answers = measure(supernet, values, cfg.calibration(run.data), batches)
    figures = {**asdict(answers.accuracy), **times, **costs}
    return {"stage": stage, **about, **figures, **details(answers, run.data.classes)}


def details(answers: Answers, classes: Sequence[str]) -> dict[str, Any]:
    """By name of a class how many images it has, recall and precision (0 to 1, None if there is nothing to divide by),
    and the confusion matrix without its zeros: by true class and by answer, how many images."""
    rows = zip(classes, answers.images, answers.recall, answers.precision)
    confusion: dict[str, dict[str, int]] = {}
    for true, said, count in answers.pairs():
        confusion.setdefault(classes[true], {})[classes[said]] = count
    by_class = {name: {"images": n, "recall": recall, "precision": precision} for name, n, recall, precision in rows}
    return {"by_class": by_class, "confusion": confusion}


def may_be_of(folder: Path, settings: RunSettings, source: str) -> bool:
    """Whether a source has as many pictures as the run, so that it can be the run's own in another place."""
    there = read_object(folder / "run.json", "data")["data"]
    own = sum(there.get(split, 0) for split in ("train", "validation", "test"))
    found = sum(map(len, open_source(source, settings.reading, needs_train=False).splits.values()))
    return found >= own if settings.max_train else found == own


def without_images(folder: Path, device: torch.device) -> Data:
    """What a run folder says of its images, with empty splits. Raises FileError."""
    there = read_object(folder / "run.json", "data")["data"]
    try:
        channels, size = there["channels"], there["size"]
        empty = ResidentSplit(
            torch.empty(0, dtype=torch.int64), torch.empty((0, channels, size, size), dtype=torch.uint8)
        )
        about = tuple(there["classes"]), channels, size, tuple(there["mean"]), tuple(there["std"]), there["flip"]
        return Data(there["name"], *about, empty, empty, empty, there["fingerprint"], device)
    except (KeyError, TypeError) as error:
        raise FileError(f"{folder / 'run.json'}: data lacks {error}") from error


def add_member(cfg: TrainingOptions, run: Run, text: str, stage: str | None = None) -> str:
    """Measure an architecture and add it to the chosen subnets. Returns its name there."""
    stage, supernet, arch = subnet(cfg, run.folder, text, stage)
    supernet.on(run.data.device)
    name, brief = f"{stage}-{Path(text).stem}", supernet.space.brief(arch)
    taken = [member for member in family_of_run(run.folder) if member.name == name and member.arch != brief]
    if taken or Path(text).stem in ("S", "M", "L", "max"):  # a search gives these names
        raise ValueError(f"{text}: {name} is the name of another subnet; rename the file")
    judge = Judge(run.data, cfg.calibration(run.data))
    widths: tuple[int, ...] = getattr(supernet.config, "weight_bits", ())
    bits = widths[0] if len(widths) == 1 else None
    found = judge.validation(supernet, arch)
    pick = Pick(name, stage, supernet.space, arch, found.top1, found.balanced, bits=bits)
    hand_out([pick], lambda _: supernet, judge, run.folder, set())
    return name


def export_members(
    cfg: TrainingOptions, run: Run, names: Sequence[str] = (), stage: str | None = None, formats: Sequence[str] = ()
) -> list[Export]:
    """Export chosen subnets and verify their files, by default all in DEFAULT_FORMATS; the entries of `exports.json`.

    A name may also be that of a JSON file with an architecture, "largest" or "smallest": it is measured and chosen
    first, at `stage` or the last one. Raises ValueError for unknown names.
    """
    from oncequant.export.chosen import export_chosen

    check_tools(formats := formats or DEFAULT_FORMATS)
    known = {member.name for member in family_of_run(run.folder)}
    own = [name for name in names if name not in known and is_arch(name)]
    if stage and not own:
        raise ValueError("--stage: chosen subnets have their stages; it is for files, largest and smallest")
    names = [add_member(cfg, run, name, stage) if name in own else name for name in names]
    family = [member.name for member in family_of_run(run.folder)]
    if unknown := [name for name in names if name not in family]:
        listed = ", ".join(family) or "none yet: run `oncequant search` first"
        raise ValueError(f"no chosen subnet is called {unknown[0]!r}; there are: {listed}")
    return export_chosen(run.folder, names or family, cfg.calibration(run.data), run.data, formats)
