"""Memory that training takes, estimated before any work: what the machine cannot hold is refused at once.

The estimate is arithmetic on LayerSpecs. Measured peaks of single steps, in float and at 4 or 2 bits, of five presets
at one or two resolutions were 2.4 to 4.6 times the bytes of the layers' outputs; of whole runs of OQAT 3.4, of DNAS 2.6
times, per image more in a batch. So it is right within a factor of two.
"""

import os
from contextlib import suppress
from pathlib import Path

import torch

from oncequant.data import Data, ResidentSplit
from oncequant.distributed import world_size
from oncequant.family import NetworkConfig
from oncequant.models import space_of
from oncequant.train import TrainingOptions

KEPT = 3.3  # times the outputs of all layers: what the backward pass needs, gradients
KEPT_OF_BLOCKS = 1.0  # with checkpoint_activations
WEIGHTS = 5  # copies of the weights: gradient, two moments, the network that it starts from
PROGRAM = 650 * 2**20  # bytes of a process without all this
CGROUPS = "memory.max", "memory/memory.limit_in_bytes"


def check_memory(
    cfg: TrainingOptions, model: NetworkConfig, device: torch.device, images: int = 0, data: Data | None = None
) -> None:
    """Raise ValueError if training on so many images would need more memory than there is; says how that is computed.

    `data` counts too, if it is loaded; until then `images` may be open, and batches are taken to be of up to 64.
    Processes share batches; on the CPU they share the memory too."""
    space, processes, batch = space_of(model), world_size(), min(cfg.batch(images), images or 64)
    layers = space.layers(space.largest()).values()
    outputs = batch * (2 if cfg.compute == "bfloat16" else 4) * sum(s.out_channels * s.out_size**2 for s in layers)
    kept = KEPT_OF_BLOCKS if getattr(cfg, "checkpoint_activations", False) else KEPT
    splits = (data.train, data.validation, data.test) if data else ()
    pixels = sum(split.pixels.nbytes for split in splits if isinstance(split, ResidentSplit))
    other = PROGRAM + pixels + WEIGHTS * 4 * sum(s.weights for s in layers)
    is_gpu, limit = device.type == "cuda", memory_of(device)
    needed = other + kept * outputs / processes if is_gpu else other * processes + kept * outputs
    if needed > limit:
        raise ValueError(
            f"training would need about {_gib(needed)}, more than the {_gib(limit)} of this "
            f"{'GPU' if is_gpu else 'machine'}: for {batch} images a step at {max(model.resolutions)} px the outputs "
            f"of the largest network's layers are {_gib(outputs)}, training keeps about {kept:g} times as much, and "
            f"{_gib(other)} a process are for the program, weights and images. Use smaller --batch-size, "
            "--resolutions or --width"
        )


def memory_of(device: torch.device) -> int:
    """Bytes of memory that a device has in all; of the CPU's, what this process's group may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    groups = [Path("/sys/fs/cgroup")]
    with suppress(OSError):  # of version 2: "0::/the/group"
        groups.append(Path("/sys/fs/cgroup", Path("/proc/self/cgroup").read_text().rpartition("0::/")[2].strip()))
    for group in groups:
        for name in CGROUPS:
            with suppress(OSError, ValueError):  # no such group, or "max"
                found.append(int((group / name).read_text()))
    return min(found)


def _gib(size: float) -> str:
    return f"{size / 2**30:,.1f} GiB"
