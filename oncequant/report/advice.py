"""Which chosen network to take for which budget, and how sure that is with so many test images."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from oncequant.intervals import difference_on_images, share_interval, verdict
from oncequant.records import Member
from oncequant.report.contents import Contents


def advice(run: Contents, costs: Sequence[str]) -> dict[str, Any] | None:
    """For each cost the chosen networks that are worth their cost, cheapest first; None without chosen networks, or
    if the run does not say how many test images it has.

    A network is worth it if its accuracy on the validation images, which it was chosen by, is above that of all cheaper
    ones. Its test top-1 has the interval of a share of so many images; its lead over the one before that of a
    difference on the same images, if the run has kept the answers of both.
    """
    images = run.info.get("data", {}).get("test")
    if not run.family or not images:
        return None
    return {"images": images, "by_cost": [_steps(run, cost, images) for cost in costs]}


def _steps(run: Contents, cost: str, images: int) -> list[dict[str, Any]]:
    members = [(i, m) for i, m in enumerate(run.family) if cost in m.costs]
    best, before, steps = -1.0, None, []
    for i, member in sorted(members, key=lambda one: (one[1].costs[cost], -_validation(one[1]))):
        if _validation(member) <= best:
            continue
        best = _validation(member)
        steps.append(
            {
                "network": i,  # in the family
                "interval": list(share_interval(member.top1_test, images)),
                "lead": None if before is None else _lead(run, member, before),
            }
        )
        before = member
    return steps


def _validation(member: Member) -> float:
    """What it was chosen by."""
    balanced = member.balanced_validation if member.metric == "balanced" else None
    return member.top1_validation if balanced is None else balanced


def _lead(run: Contents, member: Member, other: Member) -> dict[str, Any] | None:
    """In test top-1, with its interval and what follows from it; None without the answers of both to the same
    images."""
    if member.name not in run.answers or other.name not in run.answers:
        return None
    first, second = (run.answers[one.name][1] for one in (member, other))
    if len(first) < 2 or not np.array_equal(first.labels.numpy(), second.labels.numpy()):
        return None
    found = difference_on_images((first.labels == first.predicted).numpy(), (second.labels == second.predicted).numpy())
    return {"value": found.value, "low": found.low, "high": found.high, "verdict": verdict(found)}


def validation_interval(run: Contents, top1: float) -> list[float] | None:
    """Of an accuracy on the validation images; None if the run does not say how many there are."""
    images = run.info.get("data", {}).get("validation")
    return [round(end, 5) for end in share_interval(top1, images)] if images else None
