"""What the training of a run took: images seen, and hours of cores."""

import re
from dataclasses import dataclass

from oncequant.records import read_metrics
from oncequant.report.by_hand import WAYS
from oncequant.report.contents import Contents


@dataclass(frozen=True)
class Effort:
    """Of all stages of a run, and of networks that it trained in folders of their own."""

    images: int | None
    """Training images seen, once for each subnet of a step; None if a stage has not counted them."""
    seconds: float | None
    """By the clock, without interruptions; networks that were trained side by side count each. None if unknown."""
    threads: int | None
    """Processes times threads of each; None where the run does not say, as on a GPU."""

    @property
    def core_hours(self) -> float | None:
        """Time by the clock on all threads: an upper bound of the time of processors, which is not recorded."""
        return None if self.seconds is None or self.threads is None else self.seconds * self.threads / 3600


def effort_of(run: Contents) -> Effort:
    """What metrics.jsonl of the run and of folders inside it count, without `compare`. Raises FileError."""
    folders = [path.parent for path in run.folder.rglob("metrics.jsonl")]
    inside = [folder.relative_to(run.folder).parts for folder in folders]
    last = [
        row
        for folder, parts in sorted(zip(folders, inside))
        if parts[:1] != ("compare",)
        for row in {row.stage: row for row in read_metrics(folder)}.values()
    ]
    images = [row.values.get("images") for row in last]
    seconds = [row.time_s for row in last]
    return Effort(
        int(sum(n for n in images if n is not None)) if last and None not in images else None,
        sum(s for s in seconds if s is not None) if last and None not in seconds else None,
        _threads(run),
    )


def effort_by_hand(run: Contents) -> Effort:
    """What compare.json counts for networks that were made by hand, each network once."""
    rows = [row for row in (run.comparison or {}).get("deployments", []) if row.get("way") in WAYS]
    once = {(row["way"], tuple(row["arch"].items())): row for row in rows}.values()
    return Effort(sum(row["images"] for row in once), sum(row["seconds"] for row in once), _threads(run))


def _threads(run: Contents) -> int | None:
    found = re.search(r", (\d+) threads$", str(run.info.get("device", "")))
    return int(found[1]) * int(run.info.get("processes", 1)) if found else None
