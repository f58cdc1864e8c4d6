"""A run folder: what a run was made with, so that every stage can be rerun, resumed or moved to another machine.

run.json            settings and provenance (this file writes it)
images.npz          names, splits, labels and hashes of all pictures (so does it)
commands.jsonl      the commands that changed the folder (so does it)
times.jsonl         when they did, and how long training took
metrics.jsonl       training and validation metrics as they come; tensorboard/ the same
network.safetensors weights that a network of the user's own starts from
<stage>.safetensors supernet of each stage, float, 4bit, ...; <stage>.resume.pt while it trains
measurements.jsonl  every subnet that a search measured
family.json         the subnets chosen, with their test accuracies
answers/            what each of them answers to every test image, and how sure it is
exports/            their files; exports.json what verification found
report/             index.html, pictures, tables
predictor.*         QFA's accuracy predictor and how good it is
samples*, distribution.jsonl   DNAS's networks and the distribution that they are drawn from
compare*            what `oncequant compare` found
probes.jsonl        every network that `oncequant analyse` measured; analysis/ its page
costs/              tables of costs that its searches know
.lock               held by the command that changes the folder

Equal commands write equal files: the same commands on the same machine, with the same images, package and torch, leave
folders that are equal to the last byte. No two runs have these files alike: times.* (here, beside exported files, in
report/ and beside DNAS's samples); TensorBoard's events, which hold the time; what `oncequant compare` writes, whose
subject is time, and the report of it. Timing decides two options, which run.json keeps: `--precision auto`, `--hours`.
"""

import json
import math
import platform
import shlex
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock, Timeout

from oncequant import distributed
from oncequant.cost import Cost
from oncequant.cost_table import run_costs
from oncequant.data import Data, Reading, UnreadablePictures, changes, load_data, read_pictures, write_pictures
from oncequant.family import NetworkConfig
from oncequant.files import FileError, read_object, remove_halves, user_path, write_json
from oncequant.models import config_from_json, config_to_json, family_of
from oncequant.progress import console
from oncequant.records import Command, Time, append_record, read_records
from oncequant.run_images import check_images, differing_images, refusal
from oncequant.version import package_version

LONG = 500  # letters of an option that messages do not show, as the description of a user's own network has
LOCK_SECONDS = 10  # as long as a folder may stay locked after a kill: loader workers outlive their process by five


@dataclass(frozen=True)
class RunSettings:
    """Everything a run's results depend on."""

    data: str | None
    """None: Python objects, which only Python can load again."""
    preset: str | None
    """None: a configuration that is no preset's."""
    model: NetworkConfig
    method: str
    method_config: dict[str, Any]
    seed: int
    """Of the splits."""
    validation_fraction: float | None = None
    """None, and nothing in run.json: not known, of images that `load_data` has not made."""
    test_fraction: float | None = None
    flip: bool | None = None
    max_train: int | None = None
    resident_gib: float = 2.0
    layout: Literal["auto", "classes", "splits"] = "auto"
    image_column: str | None = None
    label_column: str | None = None
    size: int | None = None
    """Side of the images as they are kept; by default the largest resolution of the model."""
    evaluations: int | None = None
    """Subnets that the search of `run --hours` measures, where that left it fewer than by default."""

    @property
    def reading(self) -> Reading:
        """How the source is read."""
        return Reading(self.layout, self.image_column, self.label_column)

    def load_data(
        self,
        device: torch.device,
        source: Any = None,
        asked: Collection[str] = (),
        cache: bool = True,
        run_dir: Path | None = None,
    ) -> Data:
        """The data set with this run's splits, or those of another `source`, in the run's size.

        `asked` are the splits, validation and test, whose fractions somebody asks for: one that exists refuses its own.
        Raises DataError; FileError if pictures cannot be read that the run in `run_dir` was made with."""
        origin: Any = self.data if source is None else source
        try:
            return load_data(
                origin,
                size=self.size or max(self.model.resolutions),
                seed=self.seed,
                validation_fraction=self.validation_fraction,
                test_fraction=self.test_fraction,
                refuse_fractions=asked,
                flip=self.flip,
                max_train=self.max_train,
                resident_limit_bytes=round(self.resident_gib * 2**30),
                device=device,
                reading=self.reading,
                cache=cache,
            )
        except UnreadablePictures as error:
            before = read_pictures(run_dir / "images.npz") if run_dir and self._splits_as_in(run_dir) else None
            if before and error.found and run_dir:
                raise FileError(refusal(run_dir, changes(before, error.found))) from error
            raise

    def _splits_as_in(self, run_dir: Path) -> bool:
        """Whether a folder has a run whose splits are made like these."""
        if not (run_dir / "run.json").exists():
            return False
        names = "seed", "validation_fraction", "test_fraction", "max_train", "reading"
        before = read_settings(run_dir)
        mine = {name: value for name in names if (value := getattr(self, name)) is not None}  # others are left open
        return all(getattr(before, name) == value for name, value in mine.items())

    def to_json(self) -> dict[str, Any]:
        """As run.json keeps them."""
        values = json.loads(json.dumps({**asdict(self), "model": config_to_json(self.model)}))
        unknown = ("validation_fraction", "test_fraction", "size", "evaluations")
        return {key: value for key, value in values.items() if value is not None or key not in unknown}


def loading_settings(data: Data, seed: int) -> dict[str, Any]:
    """Fields of RunSettings that say how images were loaded, as far as that is known; `seed` is used if it is not."""
    if (how := data.loading) is None:
        return {"seed": seed, "flip": data.flip, "size": data.size}
    fractions = {"validation_fraction": how.validation_fraction, "test_fraction": how.test_fraction}
    more = {"flip": how.flip, "max_train": how.max_train, "resident_gib": how.resident_limit_bytes / 2**30}
    return {"seed": how.seed, "size": data.size, **fractions, **more, **asdict(how.reading)}


@dataclass(frozen=True)
class Run:
    """What a method works on."""

    folder: Path
    model: NetworkConfig
    """The network in float, for these images."""
    data: Data
    changed_test: bool = False
    """Its test images may be others than those that it was made with."""

    def __post_init__(self) -> None:
        """A folder may be text, with `~`."""
        object.__setattr__(self, "folder", user_path(self.folder))

    @property
    def costs(self) -> dict[str, Cost]:
        """Those that its records have: all of `COSTS`, and of the tables in the folder. Raises FileError."""
        return run_costs(self.folder)


RESIDUAL = {  # longest shorter side of the images in pixels -> preset of residual networks; only the first is for grey
    20: "resnet-nano", 40: "resnet-cifar", 72: "resnet-64", 136: "resnet-photo", math.inf: "resnet-224"
}  # fmt: skip


def preset_for(pixels: int) -> str:
    """The preset for images with this median shorter side."""
    return next(preset for most, preset in RESIDUAL.items() if pixels <= most)


def smaller_preset(preset: str) -> str | None:
    """The preset of residual networks for the next smaller colour images; None if there is none."""
    colour = list(RESIDUAL.values())[1:]
    return colour[colour.index(preset) - 1] if preset in colour[1:] else None


def called_as() -> str:
    """The command that this process was started with; `python` in a notebook."""
    program = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    if "ipykernel" in sys.modules or program == "-c":
        return "python"
    return shlex.join(["oncequant" if program in ("__main__.py", "oncequant") else program, *sys.argv[1:]])


def create_run(run_dir: Path, settings: RunSettings, data: Data, command: str, changed_test: bool = False) -> None:
    """Write run.json, or check that the folder's run has the same settings and data, see `check_images`. Raises
    FileError."""
    path = run_dir / "run.json"
    wanted = settings.to_json()
    if path.exists():
        found = read_object(path)
        before = found.get("settings", {})
        # Images may have moved (the fingerprint tells). How often to save, what to keep for the backward pass and
        # how much to do at once changes no result. An option that the older version did not have is noted now.
        compared = [key for key in wanted if key not in ("data", "flip", "size") and key in before]
        compared = [key for key in compared if key != "preset" or None not in (before[key], wanted[key])]
        if "model" in before:
            before["model"] = json.loads(json.dumps(config_to_json(config_from_json(before["model"]))))
        for values in (before, wanted):
            for name in ("checkpoint_seconds", "checkpoint_activations", "jobs"):
                values.get("method_config", {}).pop(name, None)
        known = before.get("method_config", {})
        newer = {key: value for key, value in wanted["method_config"].items() if key not in known}
        wanted["method_config"] = {key: value for key, value in wanted["method_config"].items() if key in known}
        different = [
            f"{name} (there {old!r}, now {new!r})" if len(str(new)) < LONG else f"{name} (another one)"
            for key in compared
            for name, old, new in _differences(key, before.get(key), wanted[key])
        ]
        if before.get("method") not in (None, wanted["method"]):
            different = [f"method (there {before['method']!r}, now {wanted['method']!r})"]
        elif different:
            different += differing_images(found.get("data", {}), data)
        different = list(dict.fromkeys(different))
        if different:
            raise FileError(
                f"{run_dir} holds a run with other settings: {'; '.join(different)}. Give another --run folder."
            )
        check_images(run_dir, data, changed_test)
        table = run_dir / "images.npz"
        if data.pictures and not table.exists() and found["data"].get("digests") == data.pictures.digests():
            write_pictures(table, data.pictures)  # a kill came between the two files
        if newer:  # so that searches and exports compute with what training is told now
            found = read_object(path)
            for place in (found, found["settings"]):
                place["method_config"] = {**place["method_config"], **newer}
            write_json(path, found)
        return
    write_json(
        path,
        {
            "method": settings.method,
            "command": command,
            "version": package_version(),
            "commit": _commit(),
            "device": device_name(data.device),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "processes": distributed.world_size(),
            "seed": settings.method_config.get("seed", settings.seed),
            "data": {
                "name": data.name,
                "classes": list(data.classes),
                "train": len(data.train),
                "validation": len(data.validation),
                "test": len(data.test),
                "size": data.size,
                "channels": data.channels,
                "mean": list(data.mean),
                "std": list(data.std),
                "flip": data.flip,
                "fingerprint": data.fingerprint,
                "digests": data.pictures.digests() if data.pictures else {},
            },
            "model": {
                "name": family_of(settings.model),
                "preset": settings.preset,
                "config": config_to_json(settings.model),
            },
            "method_config": settings.method_config,
            "settings": wanted,
        },
    )
    _note_date(run_dir, 0)
    if data.pictures:
        write_pictures(run_dir / "images.npz", data.pictures)


def _differences(name: str, old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    """(name, old, new) of what differs, option by option where there are several."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [row for key in new for row in _differences(key, old.get(key), new[key])]
    return [(name, old, new)] if old != new else []


def read_settings(run_dir: Path) -> RunSettings:
    """Settings of an existing run. Raises FileError naming the folder if it holds none."""
    if not (run_dir / "run.json").exists():
        raise FileError(f"{run_dir} is not a run folder: it has no run.json (make one with `oncequant train`)")
    values = read_object(run_dir / "run.json", "settings", "data", "device", "command")["settings"]
    if missing := {f.name for f in fields(RunSettings) if f.default is MISSING} - set(values):
        raise FileError(f"{run_dir / 'run.json'}: settings lack {', '.join(sorted(missing))}")
    try:
        return RunSettings(**{**values, "model": config_from_json(values["model"])})
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise FileError(f"{run_dir / 'run.json'}: {error}") from error


@contextmanager
def writing(run_dir: Path, command: str, device: torch.device) -> Iterator[None]:
    """Note a command that changes a run folder; until it ends no other may. All processes enter, the main one acts.

    Raises FileError if another command is at work there."""
    lock = FileLock(run_dir / ".lock", timeout=LOCK_SECONDS)

    def begin() -> None:
        try:
            lock.acquire()
        except Timeout:
            message = (
                f"{run_dir}: another oncequant command works in this run folder; wait for its end, or use another one"
            )
            raise FileError(message) from None
        except PermissionError as error:
            raise FileError(f"cannot write {lock.lock_file}: {error.strerror}") from error
        except (OSError, NotImplementedError) as error:
            console.print(
                f"{run_dir}: no locks on this file system ({error}); run one command at a time", soft_wrap=True
            )
        remove_halves(run_dir, but="report")  # a report may be written beside other commands
        for trained in run_dir.rglob("*.safetensors"):  # a kill may come before the checkpoint of a stage is removed
            trained.with_suffix(".resume.pt").unlink(missing_ok=True)
        _note_command(run_dir, command, device)

    distributed.from_main(begin)
    try:
        yield
    finally:
        lock.release()


def _note_command(run_dir: Path, command: str, device: torch.device) -> None:
    """Append a command to commands.jsonl, unless it is the one before again (a run that goes on). Raises FileError."""
    path = run_dir / "commands.jsonl"
    new, before = Command(command, package_version(), _commit(), device_name(device)), read_records(path, Command)
    if [replace(last, date=None) for last in before[-1:]] != [new]:
        _note_date(run_dir, len(before) + 1)
        append_record(path, new)


def _note_date(run_dir: Path, command: int) -> None:
    append_record(run_dir / "times.jsonl", Time(command=command, date=datetime.now(UTC).strftime("%Y-%m-%d")))


def date_of(run_dir: Path) -> str:
    """When a run folder was made, year-month-day, "" if that is not known. Raises FileError."""
    dates = [time.date for time in read_records(run_dir / "times.jsonl", Time) if time.command == 0]
    return str(read_object(run_dir / "run.json").get("date") or (dates or [None])[-1] or "")


def commands_of(run_dir: Path) -> list[str]:
    """Every command that changed a run, the one that made it first. Raises FileError."""
    made = read_object(run_dir / "run.json").get("command", "")
    kept = [record.command for record in read_records(run_dir / "commands.jsonl", Command)]
    return kept if kept[:1] == [made] else [made, *kept]  # folders of older versions have not kept the first


def device_name(device: torch.device) -> str:
    """Name of the processor that computes, with the number of threads for a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {torch.get_num_threads()} threads"


def _commit() -> str | None:
    """Commit of the checkout this package runs from, with "-dirty" if files differ; None when installed elsewhere."""
    root = Path(__file__).resolve().parents[1]

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None  # installed inside another project
        return git("describe", "--always", "--dirty", "--exclude", "*")
    except (OSError, subprocess.SubprocessError):
        return None
