"""Schedules that fit into the time there is: every stage is rehearsed for a few steps, the rest is arithmetic.

A run spends its time on training steps, on validation while it trains, on the search, which measures subnets, and on
files, which are verified on the test images. The first grow with `duration`, the others do not.
"""

import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch

from oncequant import distributed
from oncequant.cost import COSTS
from oncequant.data import Data
from oncequant.from_scratch import side_by_side
from oncequant.measure import LOOK_IMAGES, LOOK_STATISTICS
from oncequant.methods import METHODS, method_of
from oncequant.models import space_of
from oncequant.models.own_weights import is_trained, untrained
from oncequant.progress import console
from oncequant.records import Metrics, read_metrics
from oncequant.run_folder import Run, RunSettings, read_settings, smaller_preset
from oncequant.search import BudgetOptions, FrontOptions
from oncequant.train import TrainingOptions

REHEARSED = 9  # steps of the shortest stage; every second one is followed by validation
IMAGES = 500  # of validation in a rehearsal, at most; as many times fewer images for statistics
VALIDATIONS = 4  # of each stage, see train.fit
FILES = 4.5  # seconds that the files of a subnet take for each second that its test images take to classify
MARGIN = 0.95  # of the time there is: steps vary
LEAST = 0.1  # of it is training
SHORT = 0.1  # times the usual schedules: where the preset was ours to choose, a smaller one is taken below
SEARCHING = 0.2  # of it at most is search, where the number of subnets is left open
FEWEST = 30  # subnets that a search measures even so, as many as an accuracy predictor needs

LONG = 1e12  # multiplications of training with the largest network, forward: a minute or more on most machines
WORTH = 20  # times the images of a rehearsal, where it is made for a message alone

AnyOptions = TypeVar("AnyOptions", bound=TrainingOptions)


class ShortOfTime(ValueError):
    """The hours are not enough."""


@dataclass(frozen=True)
class Forecast:
    """Seconds that the parts of a run take."""

    training: float
    """Of all stages with `duration` 1."""
    validation: float
    search: float
    files: float

    @property
    def rest(self) -> float:
        """What does not depend on `duration`."""
        return self.validation + self.search + self.files


def fitted(cfg: AnyOptions, options: BudgetOptions | None, run: Run, hours: float) -> tuple[AnyOptions, int | None]:
    """`cfg` with the `duration` that trains, searches and exports in so many hours, the rehearsal included; and the
    number of subnets that the search measures, where it has to be fewer than the options leave it, else None.

    `run` has the network and the images; its folder is not used. `options` are those of the search, None without search
    and files. Raises ShortOfTime if the hours are not enough for the rest. All processes of a training call this.
    """
    start = time.monotonic()
    forecast, evaluations = _searching_less(rehearse(cfg, options, run), cfg, options, hours)
    spent = distributed.from_main(lambda: time.monotonic() - start)  # all processes come to the same decision
    left = MARGIN * 3600 * hours - spent - forecast.rest
    if left < LEAST * 3600 * hours:
        least = (spent + forecast.rest) / (MARGIN - LEAST)
        raise ShortOfTime(
            f"hours {hours:g}: validation takes {minutes(forecast.validation)}, search {minutes(forecast.search)}, "
            f"files {minutes(forecast.files)}, the rehearsal took {minutes(spent)}; use at least {least / 3600:.2g}"
        )
    duration = distributed.from_main(lambda: float(f"{left / forecast.training:.3g}"))
    fitted = replace(cfg, duration=duration)
    method = METHODS[method_of(cfg)]
    steps = ", ".join(f"{stage} {fitted.schedule(stage, run.data).steps}" for stage in method.stages(cfg))
    console.print(
        f"schedules {duration:g} times as long as by default (--duration): steps {steps}; training about "
        f"{minutes(duration * forecast.training)}, validation, search and files {minutes(forecast.rest)}",
        soft_wrap=True,
    )
    return fitted, evaluations


def timed(
    settings: RunSettings, data: Data, folder: Path, search: BudgetOptions | None, hours: float, auto: bool = False
) -> tuple[RunSettings, float]:
    """The settings with schedules that fit into so many hours, or with those that the folder's run has; and how many
    times as long as by default they are, 0 where nothing fits and the preset, left open (`auto`), can be a smaller one.
    For the rest see `fitted`."""
    if not hours > 0:
        raise ValueError(f"hours {hours}: use more than 0")
    cfg = METHODS[settings.method].Config.from_json(settings.method_config)
    if distributed.from_main((folder / "run.json").exists):
        before = read_settings(folder)
        duration, evaluations = before.method_config["duration"], before.evaluations
        console.print(f"{folder} goes on with schedules {duration:g} times as long as by default", soft_wrap=True)
        fits = replace(cfg, duration=duration)
        duration = 1.0  # whatever it is, the network stays
    else:
        try:
            fits, evaluations = fitted(cfg, search, Run(folder, settings.model, data), hours)
        except ShortOfTime:
            if not auto or smaller_preset(settings.preset or "") is None:
                raise
            return settings, 0.0
        duration = fits.duration
    return replace(settings, method_config=fits.to_json(), evaluations=evaluations), duration


def smaller(preset: str, duration: float) -> str | None:
    """The smaller preset to take where schedules are too short for one; None where they are not, or there is none."""
    found = smaller_preset(preset) if duration < SHORT else None
    if found:
        console.print(
            f"preset {preset} would train {duration:.2g} times as long as by default, so {found} is taken; --preset or "
            "more --hours decide otherwise",
            soft_wrap=True,
        )
    return found


def _searching_less(
    forecast: Forecast, cfg: TrainingOptions, options: BudgetOptions | None, hours: float
) -> tuple[Forecast, int | None]:
    """The forecast with a search that takes at most `SEARCHING` of the hours, and the subnets that it then measures; as
    it is, and None, where it is short enough or the options say how many."""
    method, allowed = METHODS[method_of(cfg)], SEARCHING * 3600 * hours
    if not isinstance(options, FrontOptions) or options.evaluations or forecast.search <= allowed:
        return forecast, None
    one, open_options = forecast.search / method.measured(cfg, options)[0], cast(Any, options)
    usual = method.EVALUATIONS
    times = {n: one * method.measured(cfg, replace(open_options, evaluations=n))[0] for n in range(FEWEST, usual)}
    evaluations = max((n for n, seconds in times.items() if seconds <= allowed), default=FEWEST)
    evaluations = distributed.from_main(lambda: evaluations)
    console.print(f"the search measures {evaluations} subnets instead of {usual}, since time is short (--evaluations)")
    return replace(forecast, search=times[evaluations]), evaluations


def fitted_search(options: BudgetOptions, hours: float | None, folder: Path) -> BudgetOptions:
    """The options of the search of `run --hours`: with as many subnets as the folder's run says, where they leave that
    open. Raises FileError."""
    if hours is None or not isinstance(options, FrontOptions) or options.evaluations:
        return options
    return replace(cast(Any, options), evaluations=read_settings(folder).evaluations)


def tell_time(cfg: TrainingOptions, options: BudgetOptions | None, run: Run) -> None:
    """Print about how long a new run takes, by a rehearsal, if by a rough count it takes minutes, and much longer than
    that; for arguments see `fitted`. All processes of a training call this."""
    method = METHODS[method_of(cfg)]
    space = space_of(run.model)
    macs = float(np.max(COSTS["macs"](space.layers(space.largest()))))
    stages = [cfg.schedule(stage, run.data) for stage in method.stages(cfg)]
    images = sum(one.steps * one.batch_size for one in stages)
    looked_at = sum(_rehearsed(cfg, run.data))
    rehearsed = sum(REHEARSED * one.batch_size + VALIDATIONS * looked_at for one in stages)
    if images * macs < LONG or images < WORTH * rehearsed:
        return
    forecast = rehearse(cfg, options, run)
    training = cfg.duration * forecast.training
    console.print(
        f"this takes about {minutes(training + forecast.rest)}: training {minutes(training)}, validation, search and "
        f"files {minutes(forecast.rest)}; --hours fits it into less",
        soft_wrap=True,
    )


def rehearse(cfg: TrainingOptions, options: BudgetOptions | None, run: Run, **how: Any) -> Forecast:
    """Train a few steps of each stage in a folder that is thrown away; `how` are more arguments for the method's
    `train`."""
    method, data = METHODS[method_of(cfg)], run.data
    measured, members = (0, 0) if options is None else method.measured(cfg, options)
    cfg = replace(cfg, duration=1.0)
    whole = {stage: cfg.schedule(stage, data).steps for stage in method.stages(cfg)}
    validated, calibrated = _rehearsed(cfg, data)
    few = replace(data, validation=data.validation.subset(torch.arange(validated)))
    tried = cfg.rehearsed
    steps = REHEARSED / min(tried.schedule(stage, data).steps for stage in method.stages(tried))
    short = replace(tried, duration=steps, calibration_images=calibrated, checkpoint_seconds=1e9)
    console.print("rehearsal of a few steps of each stage, for the length of schedules")
    place = tempfile.TemporaryDirectory() if distributed.is_main() else None
    folder = distributed.from_main(lambda: Path(place.name if place else ""))
    try:
        method.train(short, Run(folder, untrained(run.model), few), **how)
        rows = distributed.from_main(lambda: _rows(folder))
    finally:
        if place:
            place.cleanup()
    statistics_of = min(cfg.calibration_images, len(data.train))
    look = min(LOOK_IMAGES, len(data.validation)) + min(LOOK_STATISTICS, statistics_of)
    training, validation, an_image = 0.0, 0.0, []
    times = _times(rows)
    last = [stage for stage in method.stages(short) if stage in times][-1]
    times |= {stage: times[last] for stage in whole if stage not in times and stage != "float"}
    alone = side_by_side(getattr(cfg, "jobs", None), len(times.keys() - whole.keys()), data.device)
    for stage, (step, validating, count) in times.items():
        at_once = 1 if stage in whole else alone  # other stages are networks that are trained side by side
        steps = 0 if stage == "float" and is_trained(run.model) else cfg.schedule(stage, data).steps
        training += steps * step / at_once
        validation += VALIDATIONS * validating * look / (validated + calibrated) / at_once
        an_image.append(validating / (validated + calibrated) / count)
    one = statistics.mean(an_image[1:] or an_image)  # of the quantized stages
    searching = measured * one * (len(data.validation) + statistics_of)
    return Forecast(training, validation, searching, members * (1 + FILES) * one * len(data.test))


def _rehearsed(cfg: TrainingOptions, data: Data) -> tuple[int, int]:
    """Validation images of each look in a rehearsal, and training images for the statistics of a subnet."""
    share = min(1.0, IMAGES / max(1, len(data.validation)))
    calibrated = min(share * min(cfg.calibration_images, len(data.train)), LOOK_STATISTICS)
    return round(share * len(data.validation)), max(2, round(calibrated))


def _rows(folder: Path) -> list[Metrics]:
    """Metrics of the stages of a run, and of those that have a folder of their own in it, by their path."""
    found = []
    for path in sorted(folder.rglob("metrics.jsonl")):
        place = path.parent.relative_to(folder)
        found += [replace(row, stage=(place / row.stage).as_posix()) for row in read_metrics(path.parent)]
    return found


def _times(rows: list[Metrics]) -> dict[str, tuple[float, float, int]]:
    """By stage: seconds of a step, seconds of a validation, subnets that it measures."""
    by_stage: dict[str, list[Metrics]] = defaultdict(list)
    for row in rows:
        by_stage[row.stage].append(row)
    found = {}
    for stage, own in by_stage.items():
        steps, validations, count = [], [], 1
        for before, row in zip(own, own[1:]):
            seconds = (row.time_s or 0.0) - (before.time_s or 0.0)
            if measured := [name for name in row.values if name.startswith("top1")]:
                validations.append(seconds)
                count = len(measured)
            else:
                steps.append(seconds / (row.step - before.step))
        step = statistics.median(steps)
        found[stage] = step, max(0.0, statistics.median(validations) - step), count
    return found


def minutes(seconds: float) -> str:
    """A time, for people."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
