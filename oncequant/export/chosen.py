"""Exporting the chosen subnets of a run folder."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from oncequant.calibrate import Batches
from oncequant.checkpoint import load_supernet
from oncequant.data import Data, eval_batches
from oncequant.evaluate import calibrated_subnet
from oncequant.export.verify import VerificationError, export_network
from oncequant.files import read_json, write_json
from oncequant.network import Network
from oncequant.progress import track
from oncequant.records import Member, read_export_rows, read_records


def export_chosen(run_dir: Path, names: Sequence[str], calibration: Batches, data: Data) -> list[dict[str, Any]]:
    """Export and verify subnets of `family.json` by name; the rows of `exports.json` about them.

    A row is written as soon as it is known, `problems` say what is wrong with its files. Raises FileError.
    """
    family = {member.name: member for member in read_records(run_dir / "family.json", Member)}
    path = run_dir / "exports.json"
    rows = {row["name"]: row for row in read_export_rows(path)}
    # a name may stand for another network after a new search
    rows = {name: row for name, row in rows.items() if name in family and row.get("arch") == dict(family[name].arch)}

    @cache
    def supernet_of(stage: str) -> Network:
        return load_supernet(run_dir, stage, data.device)

    def shown(batches: Batches, done: int) -> Batches:
        """The same batches; the bar shows how many images of all networks are done."""
        for images, labels in batches:
            yield images, labels
            done += len(labels)
            bar(done, {})

    with track("verify files", len(names) * len(data.test)) as bar:
        for done, name in enumerate(names):
            member = family[name]
            supernet = supernet_of(member.stage)
            arch = supernet.space.complete(member.arch)
            subnet = calibrated_subnet(supernet, arch, calibration)
            folder = run_dir / "exports" / name
            images = shown(eval_batches(data, data.test), done * len(data.test))
            preprocessing = (data.mean, data.std, data.classes, data.size)
            try:
                found = asdict(export_network(subnet, arch, *preprocessing, calibration, images, folder))
            except VerificationError:  # its findings are in the file and in the row
                found = read_json(folder / "verification.json")
            place = {"stage": member.stage, "arch": dict(member.arch), "folder": f"exports/{name}"}
            rows[name] = {"name": name, **place, **found}
            write_json(path, list(rows.values()))
    return [rows[name] for name in names]
