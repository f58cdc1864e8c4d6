"""A full disk at random moments: one line says so and names the file, and with more space the same command goes on.

The run folder lies in a tmpfs of a random size, which grows afterwards. Where it cannot be mounted (it takes root), a
hook makes every new file fail from the n-th operation on.
"""

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


def pages(folder: Path) -> int:
    """What a tmpfs takes for a folder."""
    sizes = [path.lstat().st_size if path.is_file() else PAGE for path in folder.rglob("*")]
    return sum(-(-size // PAGE) for size in sizes)


def one_trial(place: Path, trial: int, step: Step, can_mount: bool, rng: np.random.Generator) -> dict[str, Any]:
    """Let a command run out of space, give it more, compare."""
    cpu_s, share = 0.0, rng.uniform(0, 1)
    while True:  # until space is really too little
        hook = None
        if can_mount:
            least, most = pages(step.before), pages(step.after)
            mounted(place, str((least + 1 + int(share * max(2, most - least))) * PAGE))
            moment = f"space for {100 * share:.0f} % of what it adds"
        else:
            number = 1 + int(share * len(step.operations))
            hook, moment = full_from(number), f"from operation {number} on"
        folder = copied(step.before, place / "folder")
        first = forked(command(step.words), folder, hook=hook)
        cpu_s += first.cpu_s
        if first.status != 0:
            break
        if can_mount:
            unmounted(place)
        share *= 0.8
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
