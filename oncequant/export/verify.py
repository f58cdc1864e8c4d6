"""Export one subnet and prove on images that the files do what the trained network does.

`export_network` writes the files of every format that is asked for, `verification.json`, and `times.json` with what no
two verifications find alike. The accuracy to report for
a deployed network is `top1` of a format's judgement: the files as they are meant to be run, on the test images.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from oncequant.arch import Arch
from oncequant.export.format import Batch, Common, Exported, Judgement
from oncequant.export.formats import DEFAULT_FORMATS, FORMATS, time_keys
from oncequant.export.graph import Graph
from oncequant.export.lower import lower, network_input
from oncequant.export.simulate import float_parameters, run_float, run_integer
from oncequant.files import write_json
from oncequant.measure import Batches
from oncequant.network import Network
from oncequant.progress import console

PACKING_LIMIT = 1.10  # packed bytes of low-bit weights over params * bits / 8


@dataclass(frozen=True)
class Verification:
    """What was measured on the written files."""

    common: Common
    judgements: Mapping[str, Judgement]
    """By format."""
    refused: str = ""
    """Why there are no files."""

    @property
    def problems(self) -> tuple[str, ...]:
        """Why the files cannot be trusted; empty if they can."""
        return (
            *([self.refused] if self.refused else []),
            *_problems(self.common),
            *(p for each in self.judgements.values() for p in each.problems),
        )

    def flat(self) -> dict[str, float]:
        """One number for each key, without the problems: as `verification.json` and `exports.json` have it, and the
        times of `times.json`."""
        found: dict[str, float] = asdict(self.common)
        for name, judgement in self.judgements.items():
            found |= FORMATS[name].flat(judgement)
        return found


class VerificationError(RuntimeError):
    """The written files do not do what the trained network does; the message lists the findings."""

    def __init__(self, message: str, found: Verification):
        super().__init__(message)
        self.found = found


def export_network(
    subnet: Network,
    arch: Arch,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    classes: tuple[str, ...],
    image_size: int,
    calibration: Batches,
    test: Batches,
    out_dir: Path,
    formats: Iterable[str] = DEFAULT_FORMATS,
) -> Verification:
    """Write a calibrated static subnet in some formats and verify the files on the test split.

    Args: as `lower`, and
        test: (normalised images (N, C, S, S), labels (N,)) of the images to verify on.
        out_dir: folder of the files; created if missing, existing files are replaced one by one, atomically.
        formats: names in `FORMATS`. One that cannot hold this network is left out, with a line on the terminal.

    Raises FileError if a file cannot be written or read again, VerificationError (after writing `verification.json`) if
    the files disagree with the trained network.
    """
    out_dir, about = Path(out_dir), (mean, std, classes, image_size)
    graph = lower(subnet, arch, *about, calibration)
    able: list[str] = []
    for name in formats:
        if why := FORMATS[name].refuses(graph):
            console.print(f"{out_dir.name} is not written as {name}: {why}", soft_wrap=True)
            for file in FORMATS[name].files:
                (out_dir / file).unlink(missing_ok=True)
        else:
            FORMATS[name].write(graph, out_dir)
            able.append(name)
    exported = Exported(graph, lower(subnet, arch, *about, (), as_float=True), out_dir)
    found = verify(subnet, exported, test, able)
    if not able:
        found = replace(found, refused="no format that was asked for can hold it")
    numbers, keys = found.flat(), time_keys()
    write_json(out_dir / "times.json", {key: value for key, value in numbers.items() if key in keys})
    numbers = {key: value for key, value in numbers.items() if key not in keys}
    write_json(out_dir / "verification.json", {**numbers, "problems": list(found.problems)})
    if found.problems:
        raise VerificationError(f"{out_dir} cannot be trusted: {'; '.join(found.problems)}", found)
    return found


@torch.no_grad()
def verify(
    subnet: Network, exported: Exported, test: Batches, formats: Iterable[str] = DEFAULT_FORMATS
) -> Verification:
    """Compare the trained subnet, its graph and the files of some formats on every test image.

    Raises FileError for a file that cannot be read, ValueError if there are no images.
    """
    graph, device = exported.graph, next(subnet.parameters()).device
    parameters = float_parameters(graph)
    counters = {name: FORMATS[name].read(exported) for name in formats}
    counts, common = {name: Counter[str]() for name in counters}, Counter[str]()
    for images, labels in test:
        pixels, labels = network_input(graph, images.cpu()), labels.cpu()
        plain = subnet(graph.normalise(pixels.to(device)), graph.arch).cpu()
        batch = Batch(pixels, labels, plain, run_float(graph, pixels, parameters), run_integer(graph, pixels))
        for name, count in counters.items():
            counts[name].update(count(batch))
        common.update(
            images=len(labels),
            plain=int((plain.argmax(1) == labels).sum()),
            simulated=int((batch.simulated.argmax(1) == labels).sum()),
        )
    if not common["images"]:
        raise ValueError("there are no test images")
    found = _common(graph, common)
    return Verification(found, {name: FORMATS[name].judge(exported, counts[name], found) for name in counters})


def _common(graph: Graph, counts: Counter[str]) -> Common:
    layers = [node.weights for node in graph.nodes if node.weights]
    packed = [weights for weights in layers if weights.bits < 8]
    return Common(
        images=counts["images"],
        top1_plain=counts["plain"] / counts["images"],
        top1_simulated=counts["simulated"] / counts["images"],
        ideal_bytes=sum(w.weight.numel() * w.bits / 8 for w in layers),
        low_bit_bytes=sum(w.bits * -(-w.weight.numel() // 8) for w in packed),
        low_bit_ideal_bytes=sum(w.weight.numel() * w.bits / 8 for w in packed),
    )


def _problems(common: Common) -> Iterator[str]:
    if common.low_bit_bytes > PACKING_LIMIT * common.low_bit_ideal_bytes:
        yield f"weights below 8 bits take {common.low_bit_bytes} bytes, {common.low_bit_ideal_bytes:.0f} are ideal"
