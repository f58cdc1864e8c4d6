"""Start of the command line: what must be set before torch is imported."""

import os

# Waiting threads of a parallel region spin by default; where another job wants the cores, a training step then takes
# several times longer.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from oncequant.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
