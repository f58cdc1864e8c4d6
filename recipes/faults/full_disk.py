"""A full disk at random moments: one line says so and names the file, and with more space the same command goes on.

The run folder lies in a tmpfs of a random size, which grows afterwards. Where it cannot be mounted (it takes root), a
hook makes every new file fail from the n-th operation on.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from small_runs import COMMANDS, Step, copied, differences, undisturbed
from trials import command, forked, full_from

PAGE = 4096
CYCLE = ("train", "export", "search", "train", "report")


def trials(out: Path, count: int, seed: int, skip: set[int], mount: bool = True) -> Iterator[dict[str, Any]]:
    """The rows of the trials that are not in `skip`; without `mount` full disks are simulated."""
    methods = list(COMMANDS)
    place = out / "disk"
    place.mkdir(exist_ok=True)
    can_mount = mount and mounted(place, "64m")
    if can_mount:
        unmounted(place)
    elif mount:
        print("tmpfs cannot be mounted here: full disks are simulated")
    for trial in set(range(count)) - skip:
        step = undisturbed(out, methods[trial % len(methods)], CYCLE[trial // len(methods) % len(CYCLE)])
        yield one_trial(place, trial, step, can_mount, np.random.default_rng([seed, 2, trial]))


def mounted(place: Path, size: str, again: bool = False) -> bool:
    """Mount a tmpfs, or change the size of one."""
    options = f"{'remount,' if again else ''}size={size}"
    return not subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True).returncode


def unmounted(place: Path) -> None:
    """Give its memory back."""
    subprocess.run(["umount", place], check=True)


def used(place: Path) -> int:
    """Pages of a tmpfs that hold something."""
    state = os.statvfs(place)
    return (state.f_blocks - state.f_bfree) * state.f_frsize // PAGE


def pages(folder: Path) -> int:
    """What files take in a tmpfs."""
    return sum(-(-path.stat().st_size // PAGE) for path in folder.rglob("*") if path.is_file())


def one_trial(place: Path, trial: int, step: Step, can_mount: bool, rng: np.random.Generator) -> dict[str, Any]:
    """Let a command run out of space, give it more, compare."""
    cpu_s, share = 0.0, rng.uniform(0, 1)
    while True:  # until space is really too little
        hook, more = None, 0
        if can_mount:
            mounted(place, "1g")
            folder = copied(step.before, place / "folder")
            more = int(share * max(1, pages(step.after) - pages(step.before)))
            mounted(place, str((used(place) + more) * PAGE), again=True)
            moment = f"space for {more} more pages of {PAGE} bytes"
        else:
            folder = copied(step.before, place / "folder")
            number = 1 + int(share * len(step.operations))
            hook, moment = full_from(number), f"from operation {number} on"
        first = forked(command(step.words), folder, hook=hook)
        cpu_s += first.cpu_s
        if first.status != 0 or share == 0:
            break
        if can_mount:
            unmounted(place)
        share = 0.8 * share if share > 0.05 else 0
    halves = [path.name for path in folder.rglob(".*") if path.name != ".lock"]
    if can_mount:
        mounted(place, "1g", again=True)
    last = forked(command(step.words), folder)
    different = differences(folder, step.after)
    if can_mount:
        unmounted(place)
    if not first.is_one_line("No space left on device"):
        outcome = f"message: {' / '.join(first.lines)[-300:]}"
    elif halves:
        outcome = f"half files: {', '.join(halves)}"
    elif last.status:
        outcome = f"failed: {last.brief}"
    else:
        outcome = f"differs: {', '.join(different)}" if different else "equal"
    return {
        "part": "disk",
        "trial": trial,
        "command": f"{step.method} {step.name}",
        "moment": moment,
        "outcome": outcome,
        "seconds": round(cpu_s + last.cpu_s, 2),
    }
