"""The format `c`: a network as C99 that needs no heap and no runtime, for microcontrollers and CPUs.

Weights are packed at their own bits, maps of codes lie in one arena that is planned by liveness (`program.py`), and
logits are those of the integer simulator to the last bit (`c_writer.py`, `kernels/`). It is judged by compiling it here
and asking it about every test image.
"""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from oncequant.export.c_writer import sources
from oncequant.export.cortex_m import EmulationError, emulate, missing_tools
from oncequant.export.format import Batch, Common, Exported, Format, text
from oncequant.export.graph import Graph
from oncequant.export.program import place, program
from oncequant.export.simulate import run_integer
from oncequant.files import FileError, write_atomically
from oncequant.native import missing_compiler
from oncequant.progress import console
from oncequant.structure import CannotRun

FILES = ("network.c", "network.h", "network_test.c", "network.mk", "network.md")
HASHES = "network.sha256"


@dataclass(frozen=True)
class CJudgement:
    """What was found of a network in C."""

    bytes: int
    constant_bytes: int
    """Tables that end up in flash: packed weights, biases, ratios, lookups."""
    arena_bytes: int
    """Working memory."""
    top1: float
    """Compiled on this machine, of pixels in whole numbers."""
    different_images: int
    """Whose logits differ in any bit from those of the integer simulator."""
    latency_ms: float
    """Median of one image on one thread of this machine."""
    cortex_m4_flash_bytes: int | None
    """Code and constants on a Cortex-M4. This and what follows is None where the tools to emulate one are missing."""
    cortex_m4_stack_bytes: int | None
    cortex_m4_instructions: int | None
    """Of one image."""
    problems: tuple[str, ...] = ()


def refuses(graph: Graph) -> str:
    """Why kernels of integers cannot run a graph, or ""."""
    try:
        sources(plan := program(graph), place(plan))
    except CannotRun as error:
        return str(error)
    return ""


def write_c(graph: Graph, folder: Path) -> None:
    """Write all files, each atomically, their hashes last. Raises CannotRun."""
    plan = program(graph)
    files, _ = sources(plan, place(plan))
    for name in FILES:
        write_atomically(Path(folder) / name, files[name].encode())
    lines = [f"{hashlib.sha256(files[name].encode()).hexdigest()}  {name}\n" for name in FILES]
    write_atomically(Path(folder) / HASHES, "".join(lines).encode())


def check_files(folder: Path) -> None:
    """Raise FileError if a file is missing, or is not as it was written."""
    path = Path(folder) / HASHES
    try:
        lines = [line.split("  ") for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path} cannot be read: {error}") from error
    if [line[-1] for line in lines] != list(FILES) or any(len(line) != 2 for line in lines):
        raise FileError(f"{path} does not list {', '.join(FILES)}")
    for known, name in lines:
        file = Path(folder) / name
        try:
            content = file.read_bytes()
        except OSError as error:
            raise FileError(f"{file} cannot be read: {error}") from error
        if hashlib.sha256(content).hexdigest() != known:
            raise FileError(f"{file} was changed or damaged: it does not match its hash in {HASHES}")


def read(exported: Exported) -> Callable[[Batch], Counter[str]]:
    """The compiled network, compared with the simulator on pixels that are rounded to whole numbers."""
    from oncequant.export.compiled import load_compiled
    from oncequant.native import BuildError

    try:
        network = load_compiled(exported.folder, torch.get_num_threads())
    except BuildError as error:
        raise FileError(f"{exported.folder / 'network.c'} cannot be compiled: {error}") from error

    @torch.no_grad()
    def count(batch: Batch) -> Counter[str]:
        pixels = batch.pixels.round().clamp(0, 255)
        logits = network(pixels.to(torch.uint8))
        equal = (logits == run_integer(exported.graph, pixels)).all(1)
        correct = int((logits.argmax(1) == batch.labels).sum())
        return Counter(correct=correct, different=int((~equal).sum()))

    return count


def judge(exported: Exported, counts: Counter[str], common: Common) -> CJudgement:
    """Every logit must be that of the simulator."""
    from oncequant.export.compiled import load_compiled

    plan = program(exported.graph)
    placement = place(plan)
    problems = []
    if counts["different"]:
        problems.append(
            f"the compiled C and the integer simulator compute different logits on {counts['different']} of "
            f"{common.images} images"
        )
    on_core = None
    if not missing_tools():
        try:
            on_core = emulate(exported.folder)
        except EmulationError as error:  # says nothing of the files: too large for the board, or tools that are broken
            console.print(f"{exported.folder.name} was not run on an emulated Cortex-M4: {error}", soft_wrap=True)
    if on_core and not on_core.equal:
        problems.append("a Cortex-M4 computes other logits than the integer simulator")
    return CJudgement(
        bytes=sum((exported.folder / name).stat().st_size for name in (*FILES, HASHES)),
        constant_bytes=sources(plan, placement)[1],
        arena_bytes=placement.bytes,
        top1=counts["correct"] / common.images,
        different_images=counts["different"],
        latency_ms=load_compiled(exported.folder, 1).milliseconds(),
        cortex_m4_flash_bytes=on_core.flash_bytes if on_core else None,
        cortex_m4_stack_bytes=on_core.stack_bytes if on_core else None,
        cortex_m4_instructions=on_core.instructions if on_core else None,
        problems=tuple(problems),
    )


FORMAT = Format(
    name="c",
    files=(*FILES, HASHES),
    write=write_c,
    read=read,
    judge=judge,
    refuses=refuses,
    lacks=missing_compiler,
    default=False,
    keys={
        "bytes": "c_bytes",
        "constant_bytes": "c_constant_bytes",
        "arena_bytes": "c_arena_bytes",
        "top1": "top1_c",
        "different_images": "c_different_images",
        "latency_ms": "c_latency_ms",
        "cortex_m4_flash_bytes": "cortex_m4_flash_bytes",
        "cortex_m4_stack_bytes": "cortex_m4_stack_bytes",
        "cortex_m4_instructions": "cortex_m4_instructions",
    },
    columns={
        "C: constants kB": lambda row: text(row.get("c_constant_bytes"), lambda n: f"{n / 1000:.1f}"),
        "C: arena kB": lambda row: text(row.get("c_arena_bytes"), lambda n: f"{n / 1000:.1f}"),
        "M4: flash kB": lambda row: text(row.get("cortex_m4_flash_bytes"), lambda n: f"{n / 1000:.1f}"),
        "M4: stack kB": lambda row: text(row.get("cortex_m4_stack_bytes"), lambda n: f"{n / 1000:.1f}"),
        "M4: instructions": lambda row: text(row.get("cortex_m4_instructions"), lambda n: f"{n / 1e6:.2f} M"),
    },
    times=("c_latency_ms",),
    time_columns={"C ms": lambda row: text(row.get("c_latency_ms"), "{:.3f}".format)},
    brief=("C: constants kB", "C: arena kB", "C ms"),
    notes="C: constants are what flash holds beside the code, the arena is all working memory but the stack, "
    "milliseconds are of one image on one thread of this machine, compiled for it. M4: cross-compiled for a Cortex-M4; "
    "flash is code and constants, instructions are those of one image under emulation.",
)
