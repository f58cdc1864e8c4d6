"""Networks made by hand that `oncequant compare` has trained beside a run (`compare.json`), as members of a series."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oncequant.cost import Cost
from oncequant.files import FileError
from oncequant.records import Member
from oncequant.search.measurements import all_costs
from oncequant.space import SearchSpace
from oncequant.supernet_file import load_space

SERIES = "by-hand"  # the stage of these members, before "/NAME"
WAYS = {"hand-made": "", "hand-made-whole": "-whole-time"}


def networks_by_hand(
    folder: Path, comparison: Mapping[str, Any] | None, costs: Mapping[str, Cost]
) -> tuple[list[Member], dict[str, SearchSpace]]:
    """What was deployed, each network once, and the space of each by its stage. Networks whose folder in `compare` is
    gone are left out: only it says which layers they have. Raises FileError for a damaged one."""
    members: dict[str, Member] = {}
    spaces: dict[str, SearchSpace] = {}
    for row in (comparison or {}).get("deployments", []):
        if row.get("way") not in WAYS:
            continue
        bits, widths = (comparison or {}).get("bits"), "-".join(str(width) for width in row["arch"].values())
        name = f"{SERIES}-{widths}{WAYS[row['way']]}"
        trained = sorted((folder / "compare" / "hand-made").glob(f"{widths}-{bits}bit-*s/{bits}bit.safetensors"))
        if name in members or not trained:
            continue
        space = load_space(trained[0].parent, f"{bits}bit")[1]
        arch = space.largest()
        try:
            known = all_costs(space, arch, costs)
        except ValueError as error:
            raise FileError(f"{trained[0]}: {error}") from error
        spaces[f"{SERIES}/{name}"] = space
        members[name] = Member(
            name=name,
            stage=f"{SERIES}/{name}",
            bits=bits,
            arch=space.brief(arch),
            top1_validation=row["top1_validation"],
            top1_test=row["top1_test"],
            costs=known,
        )
    return list(members.values()), spaces
