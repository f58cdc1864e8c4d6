"""Five ways to small networks in equal time, and what `oncequant analyse` found in their runs (docs/analysis.md)."""

from oncequant.intervals import CONFIRMED, UNDECIDED, Interval

from .cells import Read, Row, markdown, where

FACTORS = {"resolution": "image size", "depth": "depth", "width": "width", "expand_ratio": "width inside blocks"}
SAID = {  # what the papers say of an effect: whether it is above 0
    ("equal compute", "resolution"): (True, "larger images lose less"),
    ("equal compute", "depth"): (False, "shallower networks lose less"),
    ("equal accuracy", "width"): (True, "wider networks lose less"),
    ("equal accuracy", "expand_ratio"): (True, "wider networks lose less"),
    ("weights", "depthwise"): (True, "depthwise weights want more bits"),
    ("weights", "expand"): (False, "expansions want the fewest bits"),
}


def interval(row: Row, prefix: str = "") -> Interval:
    """Value and ends of a row, in points."""
    return Interval(*(row.number(f"{prefix}{part}") for part in ("value", "low", "high")))


def line(row: Row, what: str, said: tuple[bool, str] | None = None, prefix: str = "") -> list[str]:
    """A finding, its verdict on "above 0", and whether it agrees with what the paper says."""
    verdict, paper = row[f"{prefix}verdict"], ""
    if said:
        agrees = (
            "not decided" if verdict == UNDECIDED else "agrees" if (verdict == CONFIRMED) == said[0] else "opposite"
        )
        paper = f"{said[1]}: {agrees}"
    above = {CONFIRMED: "above 0", UNDECIDED: "undecided"}.get(verdict, "below 0")
    return [row["run"], what, interval(row, prefix).text(), above, paper]


def lowest(rows: list[Row], run: str) -> list[Row]:
    """Rows of a run at its lowest bit-width."""
    own = where(rows, run=run)
    bits = min(int(row["bits"]) for row in own)
    return where(own, bits=bits)


def five_runs_findings(read: Read) -> str:
    """Findings with their intervals, at the lowest bit-width of each run; of layers those that are decided, or of which
    a paper says something."""
    accuracy, effects, bits = (read(f"five-runs_{name}_cpu_202611") for name in ("accuracy", "effects", "bits"))
    lines = []
    for run in dict.fromkeys(row["run"] for row in accuracy):
        for row in lowest(accuracy, run):
            reference = next(one["bits"] for one in where(accuracy, run=run) if one["reference"] == "True")
            name = "float" if reference == "32" else f"{reference} bits"
            lines.append(line(row, f"{row['bits']} bits less {name}, the same architectures"))
    for run in dict.fromkeys(row["run"] for row in effects):
        for row in lowest(effects, run):
            key = row["at"], row["factor"]
            if row["part"] == "all" and key in SAID and row["value"]:
                what = f"{FACTORS[row['factor']]} at {row['at']}, {row['bits']} bits"
                lines.append(line(row, what, SAID[key]))
    for row in where(bits, by="role"):
        said = SAID.get((row["what"], row["name"]))
        if said or row["lead_verdict"] != UNDECIDED:
            what = f"{row['what']} of {row['name'].replace('_', ' ')}: lead of bits there"
            lines.append(line(row, what, said, "lead_"))
    return markdown(["run", "effect", "points, 95 % interval", "verdict", "the papers"], lines)


def five_runs(read: Read) -> str:
    """What each way cost, and the volumes of its chosen networks on the test images."""
    volumes = {row["Run"]: row for row in read("five-runs_volumes_cpu_202611")}
    lines = []
    for row in read("five-runs_cpu_202611"):
        own = volumes[row["Run"]]
        cells = [row[column] for column in ("Run", "Training images seen", "Core hours", "Measured")]
        lines.append([*cells, own["Chosen, BitOPs"], own["Chosen, Packed weights"]])
    head = ["run", "training images seen", "core hours", "networks measured"]
    return markdown([*head, "volume over BitOPs", "volume over packed weights"], lines)
