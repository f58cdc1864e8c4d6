"""The images of a run: described when they are loaded, compared with those that the run was made with."""

from pathlib import Path
from typing import Any

from oncequant.data import Changes, Data, changes, read_pictures, summary
from oncequant.files import FileError, read_object
from oncequant.models import PRESETS, family_of
from oncequant.progress import console

IMAGES = {"train": "training images", "validation": "validation images", "test": "test images"}
OTHER = "the images (others, or in another order)"


def tell(data: Data) -> None:
    """Print what a data set is, and what may not be meant so."""
    for line in summary(data.pictures, data.size, data.channels) if data.pictures else ():
        console.print(line, soft_wrap=True)


def tell_run(data: Data, preset: str | None, pixels: int, folder: Path) -> None:
    """Print what a run works on, and what may not be meant so. `preset` is None for a network of the user's own."""
    tell(data)
    why = f" for images of {pixels} px" if pixels else ""
    network = "a network of your own" if preset is None else f"preset {preset}{why} (--preset)"
    console.print(f"{data.name}: {network}; run folder {folder}", soft_wrap=True)
    if data.flip:
        console.print(
            "training images are mirrored at random; use --no-flip where that changes the label", soft_wrap=True
        )
    if pixels >= 2 * data.size:
        own = preset and preset in PRESETS and family_of(PRESETS[preset])
        larger = [n for n, c in PRESETS.items() if family_of(c) == own and max(c.resolutions) > data.size]
        console.print(
            f"images of {pixels} px are scaled to {data.size} px: "
            f"{f'--preset {larger[0]} or ' if larger else ''}larger --resolutions show more",
            soft_wrap=True,
        )


def check_images(run_dir: Path, data: Data, changed_test: bool = False) -> None:
    """Raise FileError, in one line, if the images are not those the run was made with. With `changed_test` those of the
    test split may differ, which is noted."""
    known = read_object(run_dir / "run.json", "data")["data"]
    now = data.pictures.digests() if data.pictures else {}
    before = known.get("digests") or now  # older runs have only the fingerprint, a sample
    different = differing_images(known, data)
    if not different and before == now:
        return
    pictures = read_pictures(run_dir / "images.npz")
    found = None
    if pictures and data.pictures:
        old, new = (sorted(one.rows["hash"].tolist()) for one in (pictures, data.pictures))
        found = changes(pictures, data.pictures)
        if set(old).isdisjoint(new) or (old == new and " changed (" in str(found)):
            found = None  # others, or in another order: a list of all would tell nothing
        elif found.moved and not found.by_split and not found.classes:
            different = ["the same ones, but the images of each split (another seed, or other fractions)"]
            found = None
    if found is None or not str(found):
        raise FileError(f"{run_dir} was made of other images: {'; '.join(different or [OTHER])}")
    kept = {name: value for name, value in known.items() if name != "test"} | {"fingerprint": data.fingerprint}
    is_test = found.of_test_alone and all(before[split] == now[split] for split in ("train", "validation"))
    if not (changed_test and is_test) or differing_images(kept, data):
        raise FileError(refusal(run_dir, found))
    console.print(f"{found}; test figures from now on are of other pictures than before", soft_wrap=True)


def refusal(run_dir: Path, found: Changes) -> str:
    """One line on pictures that have changed."""
    ways = "put them back, say with --data where they are, or use a new run folder"
    if found.of_test_alone:
        ways += "; --changed-test goes on with test pictures as they are, without any that cannot be read"
    return f"{run_dir}: pictures have changed since this run was trained. {found}. To go on: {ways}"


def differing_images(there: dict[str, Any], data: Data) -> list[str]:
    """What differs between the images of a run, "data" in run.json, and others; nothing if they are the same."""
    now = {"classes": list(data.classes), "size": data.size, "channels": data.channels, "flip": data.flip}
    now |= {split: len(getattr(data, split)) for split in ("train", "validation", "test")}
    different = [
        f"{IMAGES.get(name, f'{name} of the images')} (there {_short(there[name])}, now {_short(value)})"
        for name, value in now.items()
        if name in there and there[name] != value
    ]
    if "train" in there and "size" in there and there["size"] != data.size:
        different.append(f"load them with size={there['size']}")
    return different or ([] if there.get("fingerprint") == data.fingerprint else [OTHER])


def _short(value: Any) -> str:
    if not isinstance(value, list):
        return str(value)
    return f"{len(value)}: {', '.join(value[:5])}{', ...' if len(value) > 5 else ''}"
