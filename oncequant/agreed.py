"""One way into a run folder: whoever trains, searches or measures there has the run's own options, network and images.

The command line makes sure of it when it opens a folder. Here it is made sure of for every call from Python.
"""

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from oncequant import distributed
from oncequant.data import Data
from oncequant.family import NetworkConfig
from oncequant.files import FileError
from oncequant.run_folder import Run, RunSettings, called_as, create_run, loading_settings, read_settings
from oncequant.train import TrainingOptions

AnyOptions = TypeVar("AnyOptions", bound=TrainingOptions)


def agreed(method: str, cfg: AnyOptions, run: Run) -> AnyOptions:
    """The options with which a run goes on: those of `cfg`, and what it leaves open (precision, batch size) as the
    folder has it. A folder without run.json gets one: a run made from Python is a run.

    All processes call it together. Raises ValueError if the network does not fit the images, FileError naming what
    differs if the folder holds a run with other options, another network or other images.
    """
    if not isinstance(run, Run):
        raise ValueError(f"a run is what new_run or open_run returns, not a {type(run).__name__}")
    check_fits(run.model, run.data)
    if not distributed.from_main((run.folder / "run.json").exists):
        settings = RunSettings(None, None, run.model, method, cfg.to_json(), **loading_settings(run.data, cfg.seed))
    else:
        there = distributed.from_main(lambda: read_settings(run.folder))
        if there.method == method:
            cfg = going_on(run.folder, cfg, type(cfg).from_json(there.method_config))
        settings = replace(there, method=method, model=run.model, method_config=cfg.to_json())
    distributed.from_main(lambda: create_run(run.folder, settings, run.data, called_as(), run.changed_test))
    return cfg


def going_on(folder: Path, cfg: AnyOptions, before: TrainingOptions) -> AnyOptions:
    """The options of a run that goes on: what `cfg` leaves open (precision, batch size) is as the folder has it. Raises
    FileError if an older version has trained the folder without an option that changes the loss."""
    if cfg.class_weights != before.class_weights:
        raise FileError(
            f"{folder} holds a run with other settings: class_weights (there {before.class_weights!r}, now "
            f"{cfg.class_weights!r}). Give another --run folder."
        )
    precision = before.precision if cfg.precision == "auto" else cfg.precision
    batch_size = before.batch_size if cfg.batch_size is None else cfg.batch_size
    return replace(cfg, precision=precision, batch_size=batch_size)


def check_fits(model: NetworkConfig, data: Data) -> None:
    """Raise ValueError if a network has other classes or channels than the images, or needs larger ones."""
    wrong = []
    if model.num_classes != len(data.classes):
        wrong.append(f"the network has {model.num_classes} classes, the images {len(data.classes)}")
    if model.image_channels != data.channels:
        wrong.append(f"the network has {model.image_channels} channels, the images {data.channels}")
    if max(model.resolutions) > data.size:
        largest = max(model.resolutions)
        wrong.append(f"the network needs images of {largest} px, they have {data.size}: load them with size={largest}")
    if wrong:
        raise ValueError(f"the network does not fit the images of {data.name}: {'; '.join(wrong)}")
