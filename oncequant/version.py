"""Version of the package; imports nothing that takes time."""

from importlib import metadata


def package_version() -> str:
    """Version of the oncequant that runs, "unknown" from a source tree that is not installed."""
    try:
        return metadata.version("oncequant")
    except metadata.PackageNotFoundError:
        return "unknown"
