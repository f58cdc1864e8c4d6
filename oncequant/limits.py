"""Ranges of numbers that options may have, checked where the options are."""

Range = tuple[float, float]
SEEDS: Range = (0, 2**32 - 1)  # what every library accepts
RATES: Range = (1e-9, 10)


def check_ranges(options: object, **ranges: Range) -> None:
    """Raise ValueError if a field, a number or a tuple of them, lies outside its range, both ends allowed; nan does.

    The one line names field, value and range. Fields at None are left out."""
    for name, (low, high) in ranges.items():
        value = getattr(options, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not low <= number <= high:
                raise ValueError(f"{name} {number}: use {_text(low)} to {_text(high)}")


def _text(limit: float) -> str:
    return f"{limit:,}" if isinstance(limit, int) else f"{limit:g}"
