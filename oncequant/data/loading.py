"""How images were loaded, so that a run of them can load them again."""

from dataclasses import dataclass

from oncequant.data.names import Reading


@dataclass(frozen=True)
class Loading:
    """Arguments of `load_data`."""

    source: str | None
    """digits, the absolute path of a place on this machine, or a hub name; None for Python data sets, which only Python
    can load again."""
    seed: int
    validation_fraction: float
    test_fraction: float
    flip: bool | None
    max_train: int | None
    resident_limit_bytes: int
    reading: Reading
