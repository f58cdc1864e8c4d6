"""The command line: `oncequant run | train | search | compare | evaluate | export | report | cost | info`.

Errors that the user can mend are one line; with ONCEQUANT_TRACEBACK=1 they come with their traceback.
"""

import json
import os
import shlex
import sys
import time
import traceback
from collections import Counter
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path

import torch
import tyro
from rich.table import Table

from oncequant import distributed
from oncequant import train as training
from oncequant.allocator import keep_freed_memory
from oncequant.arch import FLOAT_BITS, Arch
from oncequant.checkpoint import load_supernet
from oncequant.cost import COSTS, readable, shown_costs
from oncequant.data import Data, Split, check_images, eval_batches, native_size
from oncequant.data.sources import is_read
from oncequant.evaluate import measure
from oncequant.files import read_object, read_records
from oncequant.methods import baselines, dnas, oqat, qfa
from oncequant.models import resnet, space_of
from oncequant.models.mobilenet_v3 import PRESETS
from oncequant.network import Network
from oncequant.options import (
    Compare,
    Cost,
    Device,
    Evaluate,
    Export,
    Info,
    Report,
    Run,
    Search,
    SearchOptions,
    Train,
)
from oncequant.progress import console
from oncequant.run_folder import (
    RunSettings,
    check_fingerprint,
    commands_of,
    create_run,
    open_run,
    preset_for,
    writing,
)
from oncequant.search import SEARCHERS, SearchConfig
from oncequant.search.measurements import all_costs
from oncequant.search.supernet import Choice, record_family


def main() -> None:
    """Entry point of the `oncequant` command."""
    commands = {
        "run": Run,
        "train": Train,
        "search": Search,
        "compare": Compare,
        "evaluate": Evaluate,
        "export": Export,
        "report": Report,
        "cost": Cost,
        "info": Info,
    }
    description = (
        "Train one quantization-aware supernet on your images; deploy compact 4/3/2-bit networks for any budget."
    )
    try:
        options = tyro.extras.subcommand_cli_from_dict(commands, prog="oncequant", description=description)
        shared = options.train if isinstance(options, Run) else options
        devices, device = _devices(shared), _device(getattr(shared, "device", "cpu"))
        if devices > 1 and not distributed.was_launched():
            sys.exit(distributed.launch(devices, sys.argv[1:], device))
        console.quiet = not distributed.is_main()
        if isinstance(options, (Run, Train, Search, Compare)):
            distributed.join(device)
            HANDLERS[type(options)](options)
            distributed.leave()
        elif distributed.is_main():
            HANDLERS[type(options)](options)
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from the last checkpoint")
        sys.exit(130)
    except Exception as error:  # of any kind: other processes may be waiting for this one
        _end(error)


def _end(error: Exception) -> None:
    """End this process after an error: one line if it is the user's to mend, else its traceback."""
    # every error that is the user's to mend is one of these (DataError, BudgetError, FileError, ...)
    is_users = isinstance(error, (ValueError, OSError, training.TrainingError, torch.OutOfMemoryError))
    if not distributed.is_main():
        time.sleep(3)  # if the main process fails too, it ends this one before it repeats the message
    if is_users:
        advice = " (training needs less with a smaller --batch-size)"
        place = "" if distributed.is_main() else f"process {distributed.rank()}: "
        text = f"{error}{advice}" if isinstance(error, torch.OutOfMemoryError) else error
        print(f"error: {place}{text}", file=sys.stderr, flush=True)
    if not is_users or os.environ.get("ONCEQUANT_TRACEBACK"):
        if not distributed.was_launched():
            raise error
        traceback.print_exception(error)
    if distributed.was_launched():
        sys.stderr.flush()
        os._exit(1)  # others may be waiting for this process, and its way out would wait for them
    sys.exit(1)


MethodConfig = oqat.Config | qfa.Config | dnas.Config
METHODS = {"oqat": oqat, "qfa": qfa, "dnas": dnas}  # a module with Config, check_budgets, train and search


class UsageError(ValueError):
    """An option has a value that cannot work; the message names it."""


def run(options: Run) -> None:
    """`oncequant run`."""
    if options.train.method == "qfa" and min(options.train.qfa_options.bits, default=2) < 2:
        raise UsageError("--qfa.bits: files hold 2 bits and more; 1 is for `oncequant train` and `search`")
    if any(value % 100 == 1 for value in options.train.dnas_options.precisions or ()):
        raise UsageError("--dnas.precisions: files hold inputs of 2 bits and more; 1 is for `oncequant train`")
    _check_packages("onnx", "onnxruntime", "matplotlib")
    run_dir, settings, data = _prepare(options.train, options.search.config())
    with writing(run_dir, _command(), data.device):
        METHODS[settings.method].train(_method_config(settings), settings.model, data, run_dir)
        _search(run_dir, settings, data, options.search)
        distributed.leave()
        if not distributed.is_main():
            return
        problems = _export(run_dir, settings, data, ())
        report(Report(run_dir))
    if problems:
        raise UsageError(problems)


def train(options: Train) -> None:
    """`oncequant train`."""
    run_dir, settings, data = _prepare(options, SearchConfig())
    with writing(run_dir, _command(), data.device):
        METHODS[settings.method].train(_method_config(settings), settings.model, data, run_dir)


def search(options: Search) -> None:
    """`oncequant search`."""
    options.search.config()
    settings, data = _open(options.run, options.data, options.device)
    with writing(options.run, _command(), data.device):
        _search(options.run, settings, data, options.search)


def compare(options: Compare) -> None:
    """`oncequant compare`."""
    settings, data = _open(options.run, options.data, options.device)
    cfg = _method_config(settings)
    if settings.method != "oqat" or options.bits not in cfg.bit_schedule:
        widths = f"bit-widths {', '.join(map(str, cfg.bit_schedule))}" if settings.method == "oqat" else settings.method
        raise UsageError(
            f"--bits {options.bits}: {options.run} holds {widths}; compare needs that supernet of an OQAT run"
        )
    if options.deployments < 1 or not options.ways:
        raise UsageError("--deployments is at least 1, --ways at least one")
    ways = tuple(dict.fromkeys(options.ways))
    with writing(options.run, _command(), data.device):
        _, totals = baselines.compare(
            cfg, settings.model, data, options.run, options.bits, options.deployments, ways, options.evaluations
        )
    table = Table(
        "way", "deployments", "training images", "networks", "validation %", "test %", "BitOPs",
        title=f"Networks of {options.bits} bits at equal budgets: means over deployments",
    )  # fmt: skip
    for row in totals:
        means = [f"{100 * row[key]:.2f}" for key in ("top1_validation", "top1_test")]
        counts = str(row["deployments"]), readable(row["images"]), str(row["networks"])
        table.add_row(row["way"], *counts, *means, readable(row["mean_bitops"]))
    console.print(table)


def evaluate(options: Evaluate) -> None:
    """`oncequant evaluate`."""
    settings, data = _open(options.run, options.data, options.device)
    cfg = _method_config(settings)
    stage, supernet, arch = _subnet(options.run, cfg, data.device, options.arch, options.stage)
    calibration = cfg.calibration(data)
    split = getattr(data, options.split)
    top1 = measure(supernet, arch, calibration, eval_batches(data, split))
    result = {"stage": stage, "split": options.split, "images": len(split), "top1": top1}
    print(json.dumps({**result, **all_costs(supernet.space, arch)}))


def export(options: Export) -> None:
    """`oncequant export`."""
    _check_packages("onnx", "onnxruntime")
    settings, data = _open(options.run, options.data, options.device)
    known = {entry["name"] for entry in _family(options.run)}
    if options.stage and not any(name not in known and _is_arch(name) for name in options.names):
        raise UsageError("--stage: chosen subnets have their stages; it is for files, largest and smallest")
    with writing(options.run, _command(), data.device):
        names = [
            _choose(options.run, settings, data, name, options.stage) if name not in known and _is_arch(name) else name
            for name in options.names
        ]
        problems = _export(options.run, settings, data, tuple(names))
    if problems:
        raise UsageError(problems)


def report(options: Report) -> None:
    """`oncequant report`."""
    from oncequant.report import write_report

    console.print(f"report: {write_report(options.run)}", soft_wrap=True, highlight=False)


def cost(options: Cost) -> None:
    """`oncequant cost`."""
    config = replace(PRESETS[options.preset], width=options.width, se_bits=options.se_bits)
    config = replace(config, num_classes=options.num_classes or config.num_classes)
    every = tuple(sorted({*range(1, 9), FLOAT_BITS}))
    space = space_of(replace(config, weight_bits=every, act_bits=every))
    edges = {
        f"{layer}.{what}_bits": options.edge_bits for layer in ("stem", "classifier") for what in ("weight", "act")
    }
    space = replace(space, choices={**space.choices, **{name: every for name in edges}})
    default = {name: options.bits for name in space.choices if name.endswith("_bits")} | edges
    lines = sys.stdin if options.archs == "-" else Path(options.archs).read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                arch = space.complete({**default, **Arch.from_json(line)})
            except ValueError as error:
                raise UsageError(f"{options.archs}, line {number}: {error}") from error
            print(json.dumps(all_costs(space, arch)))


def info(options: Info) -> None:
    """`oncequant info`."""
    if options.run is None:
        table = Table(
            "preset", "images", "resolutions", "architectures", title="presets; DNAS has the residual networks"
        )
        for name, config in {**PRESETS, **resnet.PRESETS}.items():
            if name in resnet.PRESETS:
                config = dnas.Config().supernet_model(config)
            size = space_of(config).size()
            span = f"{min(config.resolutions)} to {max(config.resolutions)} px"
            table.add_row(name, "greyscale" if config.image_channels == 1 else "colour", span, f"{size:.3g}")
        console.print(table)
        console.print(f"costs: {', '.join(COSTS)}; searchers: {', '.join(SEARCHERS)}; methods: {', '.join(METHODS)}")
        return
    settings = open_run(options.run)
    values = read_object(options.run / "run.json")
    console.print(f"{options.run}: {settings.method} on {values['data'].get('name')}, preset {settings.preset}")
    console.print(f"made {values['date']} on {values['device']} by: {values['command']}", soft_wrap=True)
    for later in commands_of(options.run)[1:]:
        console.print(f"then: {later}", soft_wrap=True)
    stages = _method_config(settings).stages
    done = [stage for stage in stages if (options.run / f"{stage}.safetensors").exists()]
    console.print(f"stages trained: {', '.join(done) or 'none'} of {', '.join(stages)}")
    _print_family(_family(options.run))


HANDLERS = {
    Run: run, Train: train, Search: search, Compare: compare, Evaluate: evaluate, Export: export, Report: report,
    Cost: cost, Info: info
}  # fmt: skip


# -- parts that several commands share


def _check_packages(*names: str) -> None:
    """Raise UsageError if exporting and reporting, maybe hours from now, would lack a package."""
    if missing := [name for name in names if find_spec(name) is None]:
        raise UsageError(f'this command needs more packages ({", ".join(missing)}): pip install "oncequant[all]"')


def _prepare(options: Train, search_options: SearchConfig) -> tuple[Path, RunSettings, Data]:
    """A run folder ready for training. Whatever can be refused is refused here, before it."""
    if options.tune_allocator:
        done = keep_freed_memory()
        console.print("allocator: " + ("freed memory is kept" if done else "cannot be tuned here, only with glibc"))
    device, cfg = _device(options.device), options.config()
    source, preset = Path(options.data), options.model.preset
    is_place = options.data != "digits" and source.exists()
    suffix = "" if options.method == "oqat" else f"-{options.method}"  # so that methods do not meet in one folder
    name = source.name if source.name not in ("", "..") else source.resolve().name
    run_dir = options.run or Path("runs") / f"{name or 'data'}{suffix}"
    if is_place and is_read(source.resolve(), run_dir.resolve()):
        raise UsageError(f"{run_dir}: this run folder would lie among the images of {options.data}; give another --run")
    pixels = native_size(options.data) if preset == "auto" or preset in resnet.PRESETS else 0
    if preset == "auto":
        preset = "resnet20" if options.method == "dnas" else preset_for(pixels)
    if (options.method == "dnas") != (preset in resnet.PRESETS):
        kinds = "dnas has residual networks, oqat and qfa have nano, cifar and imagenet"
        raise UsageError(f"--preset {preset} does not fit --method {options.method}: {kinds}")
    of_model = options.model
    if preset in resnet.PRESETS and not of_model.resolutions and resnet.PRESETS[preset].resolutions == (32,):
        of_model = replace(of_model, resolutions=(min(32, max(8, pixels)),))
    settings = RunSettings(
        data=str(source.resolve()) if is_place else options.data,  # a folder is found from anywhere
        preset=preset,
        model=of_model.config(preset, 2, 1),  # for its resolution; classes and channels are known with the images
        method=options.method,
        method_config=asdict(cfg),
        seed=options.training.seed,
        validation_fraction=options.validation_fraction,
        test_fraction=options.test_fraction,
        flip=options.flip,
        max_train=options.max_train,
        resident_gib=options.resident_gib,
    )
    data = settings.load_data(device)
    if options.method != "dnas" and not all((run_dir / f"{stage}.safetensors").exists() for stage in cfg.stages):
        training.check_shares(cfg.batch_size, len(data.train))
    settings = replace(settings, model=of_model.config(preset, len(data.classes), data.channels))
    METHODS[options.method].check_budgets(cfg, search_options, settings.model)
    if not distributed.from_main((run_dir / "run.json").exists):
        check_images(data)
    distributed.from_main(lambda: create_run(run_dir, settings, data, _command()))
    counts = f"{len(data.train)} training, {len(data.validation)} validation, {len(data.test)} test images"
    console.print(
        f"{data.name}: {len(data.classes)} classes, {counts}; preset {preset}; run folder {run_dir}", soft_wrap=True
    )
    if data.flip:
        console.print(
            "training images are mirrored at random; use --flip False where that changes the label", soft_wrap=True
        )
    if pixels >= 2 * data.size:
        larger = "resnet18" if preset in resnet.PRESETS else "imagenet"
        console.print(
            f"images of {pixels} px are scaled to {data.size} px: --preset {larger} or larger --resolutions show more",
            soft_wrap=True,
        )
    return run_dir, settings, data


def _search(run_dir: Path, settings: RunSettings, data: Data, options: SearchOptions) -> None:
    chosen = METHODS[settings.method].search(_method_config(settings), options.config(), data, run_dir)
    _print_family(chosen)
    stages = Counter(entry["stage"] for entry in chosen if entry["name"][-2:] in ("-S", "-M", "-L"))
    if few := [f"{stage} {count}" for stage, count in stages.items() if count < 3]:
        console.print(
            f"fewer than three networks on a front ({', '.join(few)}; L is the most accurate, whatever its size): the "
            "validation images do not tell more apart",
            soft_wrap=True,
        )
    exports, archs = run_dir / "exports.json", {entry["name"]: entry["arch"] for entry in _family(run_dir)}
    if old := [row["folder"] for row in read_records(exports) if row.get("arch") != archs.get(row["name"])]:
        console.print(
            f"{', '.join(old)}: still the networks of an earlier search, until `oncequant export` replaces them",
            soft_wrap=True,
        )


def _export(run_dir: Path, settings: RunSettings, data: Data, names: tuple[str, ...]) -> str:
    """Export and verify chosen subnets, all without `names`. Returns what is wrong with the files, or ""."""
    from oncequant.export.chosen import export_chosen

    family = [entry["name"] for entry in _family(run_dir)]
    if unknown := [name for name in names if name not in family]:
        listed = ", ".join(family) or "none yet: run `oncequant search` first"
        raise UsageError(f"no chosen subnet is called {unknown[0]!r}; there are: {listed}")
    rows = export_chosen(run_dir, names or family, _method_config(settings).calibration(data), data)
    _print_exports(rows)
    return "; ".join(f"{row['name']} cannot be trusted: {'; '.join(p)}" for row in rows if (p := row["problems"]))


def _is_arch(text: str) -> bool:
    """Whether this stands for an architecture by itself, not as the name of a chosen subnet."""
    return text in ("largest", "smallest") or Path(text).is_file()


def _subnet(
    run_dir: Path, cfg: MethodConfig, device: torch.device, text: str, stage: str | None
) -> tuple[str, Network, Arch]:
    """Stage, supernet and architecture of a chosen subnet, a JSON file, "largest" or "smallest"."""
    family = {entry["name"]: entry for entry in _family(run_dir)}
    if text not in family and not _is_arch(text):
        names = ", ".join(["largest", "smallest", *family])
        raise UsageError(f"architecture {text!r} is neither a file nor one of {names}")
    stage = stage or (family[text]["stage"] if text in family else cfg.stages[-1])
    supernet = load_supernet(run_dir, stage, device)
    if text in family:
        values = family[text]["arch"]
    elif text in ("largest", "smallest"):
        values = getattr(supernet.space, text)()
    else:
        try:
            values = Arch.from_json(Path(text).read_text())
        except ValueError as error:
            raise UsageError(f"{text}: {error}") from error
    return stage, supernet, supernet.space.complete(values)


def _choose(run_dir: Path, settings: RunSettings, data: Data, text: str, stage: str | None) -> str:
    """Measure an architecture and add it to the chosen subnets. Returns its name there."""
    cfg = _method_config(settings)
    stage, supernet, arch = _subnet(run_dir, cfg, data.device, text, stage)
    name, brief = f"{stage}-{Path(text).stem}", dict(supernet.space.brief(arch))
    taken = [entry for entry in _family(run_dir) if entry["name"] == name and entry["arch"] != brief]
    if taken or Path(text).stem in ("S", "M", "L", "max"):  # a search gives these names
        raise UsageError(f"{text}: {name} is the name of another subnet; rename the file")
    calibration, widths = cfg.calibration(data), getattr(supernet.config, "weight_bits", ())

    def top1(split: Split) -> float:
        return measure(supernet, arch, calibration, eval_batches(data, split))

    choice = Choice(name, stage, arch, top1(data.validation), widths[0] if len(widths) == 1 else None)
    record_family(run_dir, [choice], {stage: supernet.space}, lambda _: top1(data.test), set())
    return name


def _print_exports(rows: list[dict]) -> None:
    title = "Exported files, verified in ONNX Runtime on every test image"
    table = Table(
        "subnet", "test %", "deployed %", "ONNX kB", "package kB", "weights kB", "ms", "float ms", title=title
    )
    for row in rows:
        accuracies = [f"{100 * row[key]:.2f}" for key in ("top1_plain", "top1_deployed")]
        sizes = [f"{row[key] / 1000:.1f}" for key in ("onnx_bytes", "package_bytes", "ideal_bytes")]
        table.add_row(row["name"], *accuracies, *sizes, f"{row['latency_ms']:.3f}", f"{row['float_latency_ms']:.3f}")
    console.print(table)


def _command() -> str:
    return shlex.join(["oncequant", *sys.argv[1:]])


def _open(run_dir: Path, data: str | None, device: Device) -> tuple[RunSettings, Data]:
    """Settings and images of a run."""
    settings = open_run(run_dir)
    settings = replace(settings, data=data or settings.data)
    data = settings.load_data(_device(device))
    check_fingerprint(run_dir, data)
    return settings, data


def _method_config(settings: RunSettings) -> MethodConfig:
    return METHODS[settings.method].Config.from_json(settings.method_config)


def _family(run_dir: Path) -> list[dict]:
    return read_records(run_dir / "family.json")


def _print_family(family: list[dict]) -> None:
    shown = shown_costs(entry["costs"] for entry in family)
    table = Table("subnet", "validation %", "test %", *(cost.title for cost in shown))
    for entry in family:
        numbers = [readable(entry["costs"][cost.name]) for cost in shown]
        accuracies = [f"{100 * entry[key]:.2f}" for key in ("top1_validation", "top1_test")]
        table.add_row(entry["name"], *accuracies, *numbers)
    console.print(table)


def _devices(options: object) -> int:
    """Processes that a command asks for. Raises UsageError if there cannot be so many."""
    devices, device = getattr(options, "devices", 1), getattr(options, "device", "cpu")
    if devices < 1:
        raise UsageError(f"--devices {devices}: use a number from 1")
    if _device(device).type == "cuda" and devices > torch.cuda.device_count():
        raise UsageError(f"--devices {devices}: this machine has {torch.cuda.device_count()} GPUs")
    return devices


def _device(name: Device) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: this machine has no usable GPU; use cpu or auto")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")
