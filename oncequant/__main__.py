"""Start of the command line: what must be set before torch is imported."""

import os
import sys

# Threads that wait at the end of a parallel region spin for milliseconds by default; where another job wants the cores,
# a training step then takes several times longer. Not spinning at all doubles the time of small layers on idle cores.
# 2000 turns, some microseconds, cost little in either case (docs/log.md).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

STARTING = "oncequant is starting ..."
if sys.stderr.isatty():  # importing torch takes seconds
    print(f"\r{STARTING}", end="", file=sys.stderr, flush=True)

from oncequant.cli import main  # noqa: E402

if sys.stderr.isatty():
    print(f"\r{' ' * len(STARTING)}\r", end="", file=sys.stderr, flush=True)

if __name__ == "__main__":
    main()
