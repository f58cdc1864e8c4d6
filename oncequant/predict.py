"""`oncequant predict`: what an exported network sees in pictures.

Needs onnxruntime, NumPy and Pillow alone, so that exported folders can be used where there is no torch.
"""

import argparse
import csv
import difflib
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from PIL import Image

from oncequant.cpu import cores
from oncequant.files import FileError, read_json, user_path
from oncequant.help_text import help_page
from oncequant.images import DataError, files_below, is_image, square, whole_image, why_unreadable

USES = (
    "usage: oncequant predict RUN NETWORK PICTURE ... [OPTIONS]\n       oncequant predict FOLDER PICTURE ... [OPTIONS]"
)
ARGUMENTS = (
    (["RUN NETWORK"], "Run folder, and the name of a network that `oncequant export` has written there."),
    (["FOLDER"], "Instead: a folder with a model.onnx that `oncequant export` wrote, wherever it is now."),
    (["PICTURE ..."], "Picture files, and folders of them, at any depth."),
)
OPTIONS = (
    (["--json"], "A JSON object a line: picture, class, probability."),
    (["--csv"], "A table with the columns picture, class, probability."),
    (["--top N"], "The N most probable classes of each picture. (default 1)"),
)
TOGETHER = 64  # pictures that are decoded and classified at once
MODEL = "model.onnx"


@dataclass(frozen=True)
class Predict:
    """Classify pictures with an exported network.

    Pictures that cannot be read are named, and the exit code is then 1.
    """

    places: tuple[str, ...]
    """The network, as a folder or as a run and a name, and pictures and folders of them."""
    json: bool = False
    csv: bool = False
    top: int = 1


@dataclass(frozen=True)
class Answer:
    """What a network says of a picture."""

    picture: Path
    classes: tuple[str, ...]
    """The most probable first; empty if the picture cannot be read."""
    probabilities: tuple[float, ...]
    problem: str = ""
    """Why it cannot be read."""


@dataclass(frozen=True)
class Classifier:
    """An exported network in ONNX Runtime."""

    runtime: Any
    classes: tuple[str, ...]
    channels: int
    image_size: int
    """Side in pixels that training images were stored at."""
    resolution: int
    """Side that the network takes."""

    def __call__(self, pictures: Iterable[str | os.PathLike[str]], top: int = 1) -> Iterator[Answer]:
        """Answers with the `top` most probable classes of each picture, in order. One that cannot be read raises
        nothing: its answer says why."""
        paths = list(map(Path, pictures))
        with ThreadPoolExecutor(cores()) as pool:
            for start in range(0, len(paths), TOGETHER):
                some = paths[start : start + TOGETHER]
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large ones are no problem
                    found = list(pool.map(self._pixels_or_problem, some))
                read = [pixels for pixels in found if not isinstance(pixels, str)]
                shares = iter(self.probabilities(np.stack(read)) if read else ())
                for picture, pixels in zip(some, found):
                    if isinstance(pixels, str):
                        yield Answer(picture, (), (), pixels)
                    else:
                        share = next(shares)
                        best = np.argsort(-share, kind="stable")[:top].tolist()
                        names, values = (self.classes[i] for i in best), (float(share[i]) for i in best)
                        yield Answer(picture, tuple(names), tuple(values))

    def pixels(self, picture: str | os.PathLike[str]) -> np.ndarray:
        """What the network takes of a picture, as training saw it: float32 (C, R, R), 0..255.

        Raises DataError, OSError and what else Pillow's decoders raise."""
        with whole_image(os.fspath(picture)) as image:
            stored = square(image, self.channels, self.image_size)
        if self.resolution == self.image_size:
            return stored.astype(np.float32)
        side = (self.resolution, self.resolution)
        planes = [Image.fromarray(plane).convert("F").resize(side, Image.Resampling.BILINEAR) for plane in stored]
        return np.stack([np.asarray(plane) for plane in planes])

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:  # (N, C, R, R) -> (N, classes)
        """Probabilities of the classes for pixels 0..255, float64."""
        logits = self.runtime.run(["logits"], {"pixels": pixels})[0].astype(np.float64)
        shares = np.exp(logits - logits.max(1, keepdims=True))
        return shares / shares.sum(1, keepdims=True)

    def _pixels_or_problem(self, picture: Path) -> np.ndarray | str:
        try:
            return self.pixels(picture)
        except FileNotFoundError:
            return "does not exist"
        except (PermissionError, IsADirectoryError) as error:
            return f"cannot be read: {error.strerror}"
        except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, EOFError, struct.error, ...
            return why_unreadable(error)


def load_classifier(folder: str | os.PathLike[str]) -> Classifier:
    """The network in an exported folder, or of its `model.onnx`.

    Raises FileError if there is none, if it is damaged, or if another program made it."""
    path = user_path(folder)
    path = path / MODEL if path.is_dir() else path
    if not path.is_file():
        raise FileError(f"{path} does not exist")
    try:
        from oncequant.onnx_session import session
    except ImportError as error:
        raise FileError("predicting needs one more package: pip install onnxruntime") from error
    runtime = session(path, threads=cores())
    about = runtime.get_modelmeta().custom_metadata_map
    try:
        classes, size = (json.loads(about[f"oncequant.{name}"]) for name in ("classes", "image_size"))
        _, channels, side, _ = runtime.get_inputs()[0].shape
        return Classifier(runtime, tuple(classes), channels, size, side)
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise FileError(f"{path} is no network that `oncequant export` wrote: it does not tell its classes") from error


def network_of(words: Sequence[str]) -> tuple[Path, Sequence[str], str]:
    """Folder of the network, pictures, and a note, of the words of a command that are no options. Raises FileError."""
    first, *rest = words
    place = user_path(first)
    if (place / MODEL).is_file() or place.suffix == ".onnx":
        return place, rest, ""
    if not (place / "run.json").is_file():
        what = "has no model.onnx and is no run folder" if place.exists() else "does not exist"
        raise FileError(f"{first} {what}; give a folder that `oncequant export` wrote, or a run and a network's name")
    exports = {one["name"]: one for one in _entries(place / "exports.json")}
    write = f"`oncequant export {first}` writes"
    if not exports:
        raise FileError(f"{first} has no exported networks yet; {write} them")
    if not rest:
        raise FileError(f"{first} is a run: its network is missing, one of {', '.join(exports)}")
    name = rest[0]
    if name not in exports or not (place / exports[name]["folder"] / MODEL).is_file():
        chosen = [one["name"] for one in _entries(place / "family.json")]
        if name in chosen:
            raise FileError(f"{first}: {name} is not exported as ONNX; `oncequant export {first} {name}` does it")
        near = difflib.get_close_matches(name, exports, n=1)
        hint = f"is it {near[0]}?" if near else f"there are {', '.join(exports)}"
        raise FileError(f"{first} has no exported network {name!r}; {hint}")
    now = {one["name"]: one.get("arch") for one in _entries(place / "family.json")}
    note = "" if now.get(name) == exports[name].get("arch") else f"{name}: still the network of an earlier search"
    return place / exports[name]["folder"], rest[1:], note


def _entries(path: Path) -> list[dict[str, Any]]:
    return read_json(path) if path.is_file() else []


def pictures_of(places: Iterable[str]) -> Iterator[Path]:
    """Files among `places`, and all pictures in the folders among them, sorted. Raises DataError for a folder without
    one."""
    for text in places:
        place = user_path(text)
        if not place.is_dir():
            yield place
            continue
        found = sorted(path for path in files_below(place) if is_image(path))
        if not found:
            raise DataError(f"{text}: no pictures in it")
        yield from map(Path, found)


class _Parser(argparse.ArgumentParser):
    """As the other commands say it."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {message}; `oncequant predict --help` explains the options", file=sys.stderr)
        sys.exit(2)

    def format_help(self) -> str:
        return help_page(USES, Predict.__doc__ or "", {"Arguments": ARGUMENTS, "Options": OPTIONS}) + "\n"


def parse(words: Sequence[str]) -> Predict:
    """The options of a command line. Prints help, or what is wrong, and exits."""
    parser = _Parser("oncequant predict", allow_abbrev=False)
    parser.add_argument("places", nargs="*")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--json", action="store_true")
    kind.add_argument("--csv", action="store_true")
    parser.add_argument("--top", type=int, default=1)
    found = parser.parse_intermixed_args(words)
    if not found.places:
        parser.error("the network and the pictures are missing")
    if any(not place.strip() for place in found.places):
        parser.error("an argument is empty text")
    return Predict(tuple(found.places), found.json, found.csv, found.top)


def writer_of(options: Predict) -> Callable[[Answer], None]:
    """What writes answers to standard output."""
    if options.csv:
        table = csv.writer(sys.stdout, lineterminator="\n")
        more = [f"{name}{i}" for i in range(2, options.top + 1) for name in ("class", "probability")]
        table.writerow(["picture", "class", "probability", *more])

    def write(answer: Answer) -> None:
        best = list(zip(answer.classes, answer.probabilities))
        if options.csv:
            table.writerow([answer.picture, *(cell for name, p in best for cell in (name, f"{p:.6f}"))])
        elif options.json:
            rows = [{"class": name, "probability": p} for name, p in best]
            print(json.dumps({"picture": str(answer.picture), **rows[0], **({"top": rows} if len(rows) > 1 else {})}))
        else:
            print(f"{answer.picture}: {', '.join(f'{name} {100 * p:.1f} %' for name, p in best)}")

    return write


def predict(options: Predict) -> int:
    """`oncequant predict`; the exit code. Raises FileError, DataError and ValueError before any picture is read."""
    folder, places, note = network_of(options.places)
    if not places:
        raise DataError("give at least one picture, or a folder of pictures")
    pictures = list(pictures_of(places))
    classify = load_classifier(folder)
    if not 1 <= options.top <= len(classify.classes):
        raise ValueError(f"--top {options.top}: use 1 to {len(classify.classes)}, the number of classes")
    if note:
        print(note, file=sys.stderr)
    write, broken = writer_of(options), 0
    for answer in classify(pictures, options.top):
        if answer.problem:
            broken += 1
            print(f"{answer.picture}: {answer.problem}", file=sys.stderr, flush=True)
        else:
            write(answer)
    if broken:
        print(f"error: {broken} of {len(pictures)} pictures cannot be read", file=sys.stderr)
    return 1 if broken else 0


def main(words: Sequence[str]) -> NoReturn:
    """Entry point of the command, whose errors are one line."""
    try:
        code = predict(parse(words))
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the answers has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except KeyboardInterrupt:
        code = 130
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1
    sys.exit(code)
