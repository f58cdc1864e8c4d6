"""Golden runs: 30 steps a stage of each method on digits, written down in tests/golden/*.json.

They are the net under changes that must not change results. Made at commit 2c83b01 (dc8e247 with a fault of exports
mended); `python tests/golden_runs.py [NAME]` writes them again with the code as it is, after a change of results that
its commit names. On the processor and torch that a file names everything is compared bit for bit; elsewhere, where
convolutions sum in another order, what does not depend on rounding: names and shapes of tensors, costs, and losses
within a third.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

FOLDER = Path(__file__).parent / "golden"
THEN = "--preset nano --optimizer adamw --float-sandwich --precision float32"  # defaults of that commit
SHORT = "--epochs 1 --float-epochs 1 --min-steps 30 --max-train 320 --test-fraction 0.05 --seed 1"
RUNS = {
    "oqat": f"{THEN} --width 0.5 --depths 1 --evaluations 3 {SHORT}",
    "qfa": f"{THEN} --evaluations 30 --population 20 --generations 5 --front-members 2 --mixed-subnets 1 "
    f"--width 0.5 {SHORT}",
    "dnas": f"--precision float32 --samples 2 --jobs 1 --resolutions 8 {SHORT}",
}
TIMES = ("latency_ms", "float_latency_ms", "time_s")  # of no two runs alike


def machine() -> dict[str, str]:
    """What float sums depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), "unknown")
    return {"processor": model, "capability": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__}


def run(name: str, folder: Path) -> None:
    """`oncequant run` of a golden run into `folder`, on one thread."""
    words = [sys.executable, "-m", "oncequant", "run", name, "--run", str(folder), *RUNS[name].split()]
    done = subprocess.run(words, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def digest(folder: Path) -> dict:
    """What a run folder holds, in short."""
    from oncequant.export.package import load_package
    from oncequant.files import read_json, read_lines
    from oncequant.tensor_files import read_tensors

    other = {"exports", "answers", "predictor.safetensors"}
    stages = sorted(p for p in folder.rglob("*.safetensors") if other.isdisjoint(p.relative_to(folder).parts))
    networks = {str(p.relative_to(folder)): read_tensors(p)[0] for p in stages}
    exports = [without_times(row) for row in read_json(folder / "exports.json")]
    torch.manual_seed(0)
    logits = {}
    for row in exports:
        network = load_package(folder / row["folder"])
        shape = (8, network.graph.channels, network.graph.resolution, network.graph.resolution)
        logits[row["name"]] = hash_of(network(torch.randint(256, shape).float()).detach())
    logs = [p for p in sorted(folder.rglob("metrics.jsonl"))]
    return {
        "machine": machine(),
        "tensors": {
            name: {key: [list(t.shape), hash_of(t)] for key, t in sorted(tensors.items())}
            for name, tensors in networks.items()
        },
        "metrics": {str(p.relative_to(folder)): [without_times(row) for row in read_lines(p)] for p in logs},
        "measurements": [of_results(row) for row in read_lines(folder / "measurements.jsonl")],
        "family": [of_results(row) for row in read_json(folder / "family.json")],
        "exports": exports,
        "logits": logits,
    }


def without_times(row: dict) -> dict:
    return {key: value for key, value in row.items() if key not in TIMES}


def of_results(row: dict) -> dict:
    """Without the costs that follow the kernels in C."""
    from oncequant.cost import COSTS

    return {**row, "costs": {name: number for name, number in row["costs"].items() if not COSTS[name].structural}}


def hash_of(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:8]


def read(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text())


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:] or RUNS:
        with tempfile.TemporaryDirectory() as place:
            run(name, Path(place) / name)
            found = digest(Path(place) / name)
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / f"{name}.json").write_text(json.dumps(found, indent=None, separators=(",", ":")) + "\n")
        print(f"{name}: {len(found['tensors'])} networks, {len(found['exports'])} exports")
