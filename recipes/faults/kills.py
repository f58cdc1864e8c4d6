"""SIGKILL at random moments: the same command again must end in the folder of an undisturbed run, bit for bit.

Half of the moments are shares of the processor's time that the command takes, half are the n-th operation on files,
just before it. The process group is killed, and in a third of the trials a second time while the command goes on.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from small_runs import COMMANDS, Step, copied, differences, undisturbed
from trials import Ended, command, end_at, forked

CYCLE = ("train", "search", "train", "export", "train", "report")  # what a run spends its time with, roughly


def trials(out: Path, count: int, seed: int, skip: set[int]) -> Iterator[dict[str, Any]]:
    """The rows of the trials that are not in `skip`."""
    methods = list(COMMANDS)
    for trial in set(range(count)) - skip:
        step = undisturbed(out, methods[trial % len(methods)], CYCLE[trial // len(methods) % len(CYCLE)])
        by_time = (trial + trial // len(CYCLE)) % 2 == 0
        yield one_trial(out, trial, step, by_time, np.random.default_rng([seed, 1, trial]))


def one_trial(out: Path, trial: int, step: Step, by_time: bool, rng: np.random.Generator) -> dict[str, Any]:
    """Kill a command, let it end, compare."""
    folder, moments, cpu_s = copied(step.before, out / "kill"), [], 0.0
    for number in range(2 if rng.random() < 1 / 3 else 1):
        moment, ended = kill_once(folder, step, by_time, rng)
        while ended.status == 0 and not number:  # too late: a clock is not exact
            copied(step.before, folder)
            moment, ended = kill_once(folder, step, by_time, rng)
        moments.append(moment)
        cpu_s += ended.cpu_s
        if ended.status == 0:  # a command that goes on has less to do
            break
    ended = forked(command(step.words), folder)
    different = differences(folder, step.after)
    if ended.status:
        outcome = f"failed: {ended.brief}"
    else:
        outcome = f"differs: {', '.join(different)}" if different else "equal"
    return {
        "part": "kill",
        "trial": trial,
        "command": f"{step.method} {step.name}",
        "moment": "; ".join(moments),
        "outcome": outcome,
        "seconds": round(cpu_s + ended.cpu_s, 2),
    }


def kill_once(folder: Path, step: Step, by_time: bool, rng: np.random.Generator) -> tuple[str, Ended]:
    """Start a command and kill it; the moment in words."""
    if by_time:
        share = rng.uniform(0.02, 1)
        ended = forked(command(step.words), folder, kill_at_cpu_s=share * step.cpu_s)
        moment = f"{100 * share:.0f} % of the time"
    else:
        number = int(rng.integers(1, len(step.operations) + 1))
        ended = forked(command(step.words), folder, hook=end_at(number))
        moment = f"before {number}: {step.operations[number - 1]}"
    return moment if ended.status == -9 else f"{moment} (too late)", ended
