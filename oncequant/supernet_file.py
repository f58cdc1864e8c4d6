"""Supernet checkpoints: one safetensors file per stage, with the model's configuration in its header."""

import json
from pathlib import Path

import torch

from oncequant.family import NetworkConfig
from oncequant.files import FileError
from oncequant.models import build_network, config_from_json, config_to_json, space_of
from oncequant.network import Network
from oncequant.space import SearchSpace
from oncequant.tensor_files import read_tensors, write_tensors

FORMAT = "oncequant supernet 1"


def save_supernet(run_dir: Path, stage: str, supernet: Network) -> None:
    """Write `<stage>.safetensors` atomically; the checkpoint of its training goes."""
    metadata = {
        "format": FORMAT,
        "config": json.dumps(config_to_json(supernet.config)),
        "choices": json.dumps(dict(supernet.space.choices)),  # narrower than the configuration's in a restricted space
    }
    write_tensors(run_dir / f"{stage}.safetensors", supernet.state_dict(), metadata)
    (run_dir / f"{stage}.resume.pt").unlink(missing_ok=True)


def load_supernet(run_dir: Path, stage: str, device: torch.device | str = "cpu") -> Network:
    """The supernet of a stage. Raises FileError if there is none, or the file is damaged or foreign."""
    tensors, metadata = _read(run_dir, stage)
    config, space = _space(run_dir, stage, metadata)
    supernet = build_network(config, space)
    try:
        supernet.load_state_dict(tensors)
    except RuntimeError as error:
        raise FileError(f"{run_dir / f'{stage}.safetensors'} does not fit its own configuration: {error}") from error
    return supernet.on(device)


def load_space(run_dir: Path, stage: str) -> tuple[NetworkConfig, SearchSpace]:
    """Configuration and search space of the supernet of a stage. Raises FileError as `load_supernet`."""
    return _space(run_dir, stage, _read(run_dir, stage)[1])


def _space(run_dir: Path, stage: str, metadata: dict[str, str]) -> tuple[NetworkConfig, SearchSpace]:
    try:
        config = config_from_json(json.loads(metadata["config"]))
        return config, space_of(config).restrict(json.loads(metadata["choices"]))
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"{run_dir / f'{stage}.safetensors'} does not fit its own configuration: {error}") from error


def _read(run_dir: Path, stage: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a stage's file."""
    path = run_dir / f"{stage}.safetensors"
    if not path.exists():
        have = sorted(p.stem for p in run_dir.glob("*.safetensors") if p.stem not in ("predictor", "network"))
        raise FileError(f"{path} does not exist: stages in this run are {', '.join(have) or 'none yet'}")
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise FileError(f"{path} is not a supernet checkpoint of oncequant: its format is {metadata.get('format')!r}")
    return tensors, metadata
