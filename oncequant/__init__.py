"""Train one quantization-aware supernet, deploy compact 4/3/2-bit networks for any budget.

From Python, everything public is an attribute of this module, imported when it is first used:

    load_data, Data                  labelled images in: a folder, a hub name, any torch Dataset
    METHODS, oqat, qfa, dnas         the methods; each has a Config and SearchOptions
    PRESETS, FAMILIES                networks by name; ModelOptions is what can be changed of a preset
    own_network                      a network of your own, whose bit-widths are to be chosen
    new_run, open_run, Run           a run folder, made or found again
    train_run, search_run            train every stage; choose subnets, under budgets too
    evaluate_run, export_run         measure one subnet, on other images too; packed files, verified
    report_run                       one page about all of it
    load_package                     an exported network as a plain nn.Module
    load_compiled                    an exported network in C, compiled for this machine
    load_classifier                  an exported network in ONNX Runtime, picture files in; needs no torch
    COSTS, Budget, table_cost        costs, bounds on them, and costs measured on a device

A run from Python is a run: checks, files and errors are those of the command line, which goes on with it where it can
find the images. Paths may be text, with `~` and `$NAME`.
"""

from importlib import import_module
from typing import Any

_PUBLIC = {  # where each name is from
    "oncequant.data": ("Data", "load_data"),
    "oncequant.methods": ("METHODS", "dnas", "oqat", "qfa"),
    "oncequant.models": ("FAMILIES", "PRESETS"),
    "oncequant.models.trace": ("own_network",),
    "oncequant.settings": ("ModelOptions",),
    "oncequant.run_folder": ("Run",),
    "oncequant.runs": ("evaluate_run", "export_run", "new_run", "open_run", "report_run", "search_run", "train_run"),
    "oncequant.export.compiled": ("load_compiled",),
    "oncequant.predict": ("load_classifier",),
    "oncequant.export.package": ("load_package",),
    "oncequant.cost": ("COSTS", "Budget"),
    "oncequant.cost_table": ("table_cost",),
}
_PLACE = {name: module for module, names in _PUBLIC.items() for name in names}
__all__ = sorted(_PLACE)


def __getattr__(name: str) -> Any:
    """Import what is public when it is used, so that the command line can prepare the process before torch is there."""
    if name not in _PLACE:
        raise AttributeError(f"module 'oncequant' has no attribute {name!r}; public are {', '.join(__all__)}")
    return getattr(import_module(_PLACE[name]), name)


def __dir__() -> list[str]:
    return __all__
