"""Exporting the chosen subnets of a run folder."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from oncequant.data import Data, eval_batches
from oncequant.export.format import CARD_FILES
from oncequant.export.formats import DEFAULT_FORMATS, FORMATS, time_keys
from oncequant.export.verify import VerificationError, export_network
from oncequant.measure import Batches, calibrated_subnet
from oncequant.network import Network
from oncequant.progress import track
from oncequant.records import Export, Member, read_records, write_records
from oncequant.supernet_file import load_supernet


def export_chosen(
    run_dir: Path, names: Sequence[str], calibration: Batches, data: Data, formats: Sequence[str] = DEFAULT_FORMATS
) -> list[Export]:
    """Export and verify members of the family by name, in some formats; the entries of `exports.json` about them, with
    times.

    Files of other formats, from an export before, are removed: they may hold another network. An entry is written as
    soon as it is known, `problems` say what is wrong with its files. Raises FileError.
    """
    family = {member.name: member for member in read_records(run_dir / "family.json", Member)}
    path = run_dir / "exports.json"
    new: dict[str, Export] = {}  # with times
    exports = {one.name: one for one in read_records(path, Export) if one.is_of(family.get(one.name))}

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
            old = [file for other in FORMATS.keys() - set(formats) for file in FORMATS[other].files]
            for file in (*old, *CARD_FILES):
                (folder / file).unlink(missing_ok=True)
            images = shown(eval_batches(data, data.test), done * len(data.test))
            preprocessing = (data.mean, data.std, data.classes, data.size)
            try:
                found = export_network(subnet, arch, *preprocessing, calibration, images, folder, formats)
            except VerificationError as error:  # its findings are in the file and in the entry
                found = error.found
            about, numbers = (list(found.problems), member.stage, member.arch), found.flat()
            new[name] = Export(name, f"exports/{name}", *about, numbers)
            lasting = {key: value for key, value in numbers.items() if key not in time_keys()}
            exports[name] = replace(new[name], found=lasting)
            write_records(path, list(exports.values()))
    return [new[name] for name in names]
