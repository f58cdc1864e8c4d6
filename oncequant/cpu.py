"""What this process may use of the CPU; imports nothing that takes time."""

import contextlib
import math
import os
from pathlib import Path


def cores() -> int:
    """CPU cores that this process may use: those it may run on, or fewer if its cgroup has a smaller share of time."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # "max", or no cgroups
        quota, period = map(int, Path("/sys/fs/cgroup/cpu.max").read_text().split())
        count = min(count, max(1, math.ceil(quota / period)))
    return count
