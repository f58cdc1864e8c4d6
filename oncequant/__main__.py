"""Start of the command line: what must be set before torch is imported."""

import os
import sys

from oncequant.version import package_version

# Threads that wait at the end of a parallel region spin for milliseconds by default; where another job wants the cores,
# a training step then takes several times longer. Not spinning at all doubles the time of small layers on idle cores.
# 2000 turns, some microseconds, cost little in either case (docs/log.md).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

STARTING = "oncequant is starting ..."


def main() -> None:
    """Entry point of the `oncequant` command."""
    if sys.argv[1:] == ["--version"]:  # before what takes seconds to import
        print(f"oncequant {package_version()}")
        return
    if sys.argv[1:2] == ["predict"]:  # it works without torch
        from oncequant import predict

        predict.main(sys.argv[2:])
    is_seen = sys.stderr.isatty()
    if is_seen:
        print(f"\r{STARTING}", end="", file=sys.stderr, flush=True)
    try:
        from oncequant import cli
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        sys.exit("error: without torch there is only `oncequant predict`; README.md says how to install all")

    if is_seen:
        print(f"\r{' ' * len(STARTING)}\r", end="", file=sys.stderr, flush=True)
    cli.main()


if __name__ == "__main__":
    main()
