"""Whether a run is of a network of the user's own, and of which: from Python, a file, or as its folder keeps it."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from torch import Tensor

from oncequant import distributed
from oncequant.methods import METHODS
from oncequant.models import family_of
from oncequant.models.own import AnyOwn, OwnConfig, OwnPairsConfig, pairs_of
from oncequant.models.own_file import network_of_file, place_of_network
from oncequant.models.trace import OwnNetwork
from oncequant.progress import console
from oncequant.run_folder import read_settings
from oncequant.settings import ModelOptions

LARGEST = 224  # pixels of images, where nobody says how large they are to be


def own_base(
    options: ModelOptions, method: str, folder: Path, pixels: int, seed: int, given: OwnNetwork | None = None
) -> tuple[AnyOwn | None, Mapping[str, Tensor] | None]:
    """The configuration of the user's network, and the weights that it starts from; None and None for presets.

    A folder that has a run keeps its network: `options` need not name the file again, and it may be gone. Then there
    are no weights here, as the folder has them. Images have `pixels`, the median of their shorter sides.

    Raises ValueError for options that do not go together, and what `network_of_file` raises.
    """
    kept = distributed.from_main(partial(_kept, folder))
    if kept is not None and family_of(kept) not in METHODS[method].families:
        raise ValueError(f"{folder} holds a run of a network of your own by another method; give another --run folder")
    if given is None and options.network is None:
        if kept is None and (options.weights is not None or options.trained):
            raise ValueError("weights and trained are for a network of your own: give --network FILE.py:function")
        return (kept if options.preset == "auto" else None), None
    if options.preset != "auto":
        raise ValueError("preset: leave it out, the network is your own")
    if given is None:
        text = options.network or ""
        path, _ = place_of_network(text)
        if kept is not None and not path.exists():
            console.print(f"{path} does not exist; {folder} goes on with the network that it keeps", soft_wrap=True)
            return kept, None
        size = max(options.resolutions or (min(LARGEST, pixels),))
        traced = partial(network_of_file, text, size, seed, options.weights, options.trained)
        given = distributed.from_main(traced)
    elif not isinstance(given, OwnNetwork):
        raise ValueError(f"model: give what own_network returns, not a {type(given).__name__}")
    config: AnyOwn = given.config
    if family_of(config) not in METHODS[method].families:
        config = pairs_of(given.config)
    return config, given.weights


def _kept(folder: Path) -> AnyOwn | None:
    """The network of a folder's run, if it is a user's own."""
    if not (folder / "run.json").exists():
        return None
    model = read_settings(folder).model
    return model if isinstance(model, (OwnConfig, OwnPairsConfig)) else None
