"""Bytes of code that networks in C have on a Cortex-M4, and the parts of an upper bound of it.

    python benchmarks/flash.py [--networks 300] [--seed 0] [--out results/NAME.csv]

Networks of all families with random weights, bit-widths and architectures are compiled as `oncequant export` says.
Printed are the parts of the least upper bound that is linear in them, by linear programming, and what it and
`flash_bytes` are above the compiled networks. Needs arm-none-eabi-gcc.
"""

import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import tyro
from rows import measured, save
from scipy.optimize import linprog

from oncequant.export.c_writer import sources
from oncequant.export.cortex_m import CORES, FLAGS
from oncequant.export.program import Program, place, program
from oncequant.grids import MOVES
from oncequant.memory import flash_bytes

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from blank_graphs import blank_graph, mixed

SPACES = {
    "nano": {},
    "cifar": dict(width=0.25),
    "resnet-nano": {},
    "resnet-cifar": dict(width=0.25),
    "resnet-photo": dict(width=0.25),
    "resnet20": {},
    "resnet20 B": dict(projections=True),
    "resnet50": dict(stage_widths=(4, 8, 8, 16), resolutions=(32,), num_classes=10),
    "imagenet": dict(width=0.1, num_classes=10, feature_mix_width=200, final_expand_width=200),
    "imagenet whole": dict(num_classes=10),
}
BITS = range(1, 9)
BODIES = ("depthwise", "multiply", *MOVES)


@dataclass(frozen=True)
class Options:
    """What to measure."""

    networks: int = 300
    seed: int = 0
    out: Path | None = None


def parts_of(plan: Program) -> dict[str, float]:
    """How often a program has each part of the bound."""
    ops = Counter("depthwise" if step.is_depthwise else step.op for step in plan.steps)
    bits = {step.weights.bits for step in plan.steps if step.weights is not None}
    found = {"base": 1.0} | {body: float(ops[body] > 0) for body in BODIES}
    found |= {f"{b} bits": float(b in bits) for b in BITS}
    found |= {f"{b} bits, depthwise": float(b in bits and ops["depthwise"] > 0) for b in BITS}
    layers = ops["conv"] + ops["depthwise"] + ops["linear"]
    return found | {"layer": layers, "lookup": ops["lookup"], "other": len(plan.steps) - layers - ops["lookup"]}


def compiled_bytes(files: dict[str, str], core: str = "cortex-m4") -> int:
    """Code and constants of an object file."""
    with TemporaryDirectory() as folder:
        for name in ("network.c", "network.h"):
            (Path(folder) / name).write_text(files[name])
        command = ["arm-none-eabi-gcc", *FLAGS, *CORES[core].flags, "-c", "network.c", "-o", "network.o"]
        subprocess.run(command, cwd=folder, check=True)
        printed = subprocess.run(["arm-none-eabi-size", "network.o"], cwd=folder, check=True, capture_output=True)
    return int(printed.stdout.splitlines()[1].split()[0])


def main(options: Options) -> None:
    """Measure and print."""
    rng, rows, parts = np.random.default_rng(options.seed), [], []
    for _ in range(options.networks):
        name = str(rng.choice(list(SPACES)))
        some = int(rng.integers(1, 6))
        weight_bits, act_bits = (tuple(sorted({int(b) for b in rng.choice(n, some)})) for n in (8, 7))
        bits = dict(weight_bits=tuple(b + 1 for b in weight_bits), act_bits=tuple(b + 2 for b in act_bits))
        space = mixed(name.split()[0], **bits, **SPACES[name])
        arch = space.sample(rng)
        plan = program(blank_graph(space, arch, rng))
        files, constants = sources(plan, place(plan))
        size, bound = compiled_bytes(files), int(flash_bytes(space.layers(arch)))
        parts.append(parts_of(plan))
        rows.append(measured(space=name, flash_bytes=size, constant_bytes=constants, bound=bound, above=bound - size))
    names = list(parts[0])
    table = np.array([[row[name] for name in names] for row in parts])
    code = np.array([row["flash_bytes"] - row["constant_bytes"] for row in rows])
    found = linprog(table.sum(0), A_ub=-table, b_ub=-code, bounds=[(0, None)] * len(names))
    print({name: round(value) for name, value in zip(names, found.x)})
    for label, gaps in (
        ("fitted now", table @ found.x - code),
        ("flash_bytes", np.array([row["above"] for row in rows])),
    ):
        print(f"{label}: {gaps.min():.0f} to {gaps.max():.0f} bytes above, mean {gaps.mean():.0f}")
    save(rows, options.out)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
