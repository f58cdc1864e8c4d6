"""Pictures in files: found in folders, and decoded to uint8 squares. Needs Pillow and NumPy alone.

Whatever Pillow reads, a PIL image, an array or a tensor becomes a square of side S with 1 channel or 3; transparency
becomes white, 16-bit values are divided by 257, EXIF orientation is applied.
"""

import io
import math
import os
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

EXTENSIONS = frozenset(".jpg .jpeg .jpe .jfif .png .bmp .gif .webp .tif .tiff .ppm .pgm .pbm .jp2 .avif".split())
# What programs put beside the user's folders.
_LITTER = frozenset(
    "__macosx @eadir #recycle @recycle $recycle.bin lost+found __pycache__".split() + ["system volume information"]
)
GREY_MODES = frozenset(["1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N", "F"])
LARGE = 50_000_000  # pixels; such pictures are decoded one at a time, for they may take a gigabyte each
_one_large = threading.Lock()


class DataError(ValueError):
    """The user's data cannot be used; the message names the file, class or split."""


def open_image(raw: Any) -> Image.Image:
    """PIL image of a file, its bytes, a {"bytes", "path"}, a PIL image, an array or a tensor; of an encoded one only
    the header is read. Raises DataError for other things, OSError for what is no image."""
    if isinstance(raw, dict):
        raw = raw.get("path") if raw.get("bytes") is None else io.BytesIO(raw["bytes"])
    if isinstance(raw, bytes):
        raw = io.BytesIO(raw)
    if isinstance(raw, (str, os.PathLike, io.BytesIO)):
        return Image.open(raw)
    if isinstance(raw, Image.Image):
        return raw.copy()  # what follows works in place, and the image belongs to the user
    is_tensor = _is_tensor(raw)
    if not (is_tensor or isinstance(raw, np.ndarray)):
        raise DataError(f"an image must be a PIL image, an array or a tensor, not {type(raw).__name__}")
    array = raw.detach().cpu().numpy() if is_tensor else raw
    if array.ndim == 3:
        # Tensors are channels first and arrays channels last by custom; only 3 x 3 images leave that to custom.
        first, last = array.shape[0] in (1, 3, 4), array.shape[-1] in (1, 3, 4)
        if first and (is_tensor or not last):
            array = array.transpose(1, 2, 0)
        elif not last:
            raise DataError(f"an image of shape {array.shape} is none of HxW, HxWxC and CxHxW with 1, 3 or 4 channels")
        array = array[:, :, 0] if array.shape[2] == 1 else array
    elif array.ndim != 2:
        raise DataError(f"an image of shape {array.shape} is none of HxW, HxWxC and CxHxW")
    return Image.fromarray(np.ascontiguousarray(_eight_bits(array)))


def _is_tensor(raw: Any) -> bool:
    torch = sys.modules.get("torch")  # whoever has a tensor has imported it, and who has none need not
    return torch is not None and isinstance(raw, torch.Tensor)


def _eight_bits(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return (array.astype(np.float32) / 257).round().astype(np.uint8)
    if array.dtype.kind != "f":
        raise DataError(f"pixels must be uint8, uint16 or float, not {array.dtype}")
    low, high = array.min(), array.max()
    if not (low >= -1e-3 and high <= 1.001):  # also true of NaN; the slack is for interpolated images
        raise DataError(f"float pixels must lie in [0, 1], not [{low:g}, {high:g}]: normalising is done here")
    return (array.clip(0, 1) * 255).round().astype(np.uint8)


def _flatten(image: Image.Image, channels: int) -> Image.Image:
    """Any Pillow mode to "L" or "RGB"."""
    if image.mode == "I":  # how Pillow opens some 16-bit files
        image = Image.fromarray(_eight_bits(np.asarray(image).clip(0, 65535).astype(np.uint16)))
    elif image.mode == "F" or image.mode.startswith("I;16"):
        pixels = np.asarray(image)
        if image.mode == "F" and not (pixels.min() >= -1e-3 and pixels.max() <= 1.001):  # also true of NaN
            raise DataError(
                f"its float values go from {pixels.min():g} to {pixels.max():g}; accepted are values from 0 to 1: "
                f"{'divide them by 255' if 0 <= pixels.min() and 1 < pixels.max() <= 255 else 'scale them'}, or save "
                "pictures with 8 bits"
            )
        image = Image.fromarray(_eight_bits(pixels))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    wanted = "L" if channels == 1 else "RGB"
    return image if image.mode == wanted else image.convert(wanted)  # which would copy a large one


def random_boxes(uniform: np.ndarray, aspect: float) -> np.ndarray:
    """Crops of 1/4 to all of the area with sides in ratio 3/4 to 4/3: from 4 numbers in [0, 1) each, (4, ...), their
    left, top, right and bottom (4, ...) as fractions of an image with width / height = `aspect`."""
    area, ratio = 0.25 + 0.75 * uniform[0], (4 / 3) ** (2 * uniform[1] - 1)
    width, height = np.minimum(1, np.sqrt(area * ratio / aspect)), np.minimum(1, np.sqrt(area * aspect / ratio))
    left, top = uniform[2] * (1 - width), uniform[3] * (1 - height)
    return np.stack([left, top, left + width, top + height])


def _box(width: int, height: int, uniform: np.ndarray | None) -> tuple[float, float, float, float]:
    """Pixels to keep: the square in the centre, or a random crop."""
    if uniform is None:
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        return left, top, left + side, top + side
    left, top, right, bottom = random_boxes(uniform, width / height).tolist()
    return left * width, top * height, min(right * width, width), min(bottom * height, height)


def square(image: Image.Image, channels: int, size: int, uniform: np.ndarray | None = None) -> np.ndarray:
    """The centre of an opened image, or with `uniform` (4,) in [0, 1) a random crop: uint8 (C, S, S).

    The image is changed."""
    left, top, right, bottom = _box(*image.size, uniform)
    shrink = min(right - left, bottom - top) / size
    if shrink >= 2:  # JPEG decodes to 1/2, 1/4 or 1/8 of the size in a fraction of the time; others ignore this
        image.draft(image.mode, (math.ceil(image.size[0] / shrink), math.ceil(image.size[1] / shrink)))
    ImageOps.exif_transpose(image, in_place=True)
    box = _box(*image.size, uniform)  # again: draft and orientation changed the size
    image = _flatten(image, channels).resize((size, size), Image.Resampling.BILINEAR, box)
    return np.asarray(image).reshape(size, size, channels).transpose(2, 0, 1)


def value_range(raw: Any, image: Image.Image) -> tuple[float, float] | None:
    """Least and largest value of a picture with 16 bits or floats, of the opened `raw`; None of others, or if decoding
    fails."""
    if isinstance(raw, np.ndarray) and raw.dtype == np.uint16:
        return float(raw.min()), float(raw.max())
    tiles: Any = getattr(image, "tile", None)  # how a file's pixels are stored: Pillow keeps 8 of 16 bits of colours
    is_deep = bool(tiles) and ";16" in str(tiles[0][3])
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        low, high = np.asarray(image.getextrema(), float)  # of one band
        return float(low), float(high)
    if not is_deep:
        return None
    bands: Any = image.getextrema()
    bands = bands if isinstance(bands[0], tuple) else (bands,)
    bands = bands[:-1] if image.mode in ("LA", "RGBA") else bands  # without transparency
    return 256.0 * min(low for low, _ in bands), 256.0 * max(high for _, high in bands) + 255


def why_unreadable(error: Exception) -> str:
    """What follows the name of a picture that could not be decoded, of what was raised."""
    if isinstance(error, Image.DecompressionBombError):
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        return f"larger than {most} megapixels, the most that is read; scale it down, or take it away"
    if isinstance(error, UnidentifiedImageError):
        return "cannot be read as an image: its content is of no kind that is known"
    return str(error) if isinstance(error, DataError) else f"cannot be read as an image: {error}"


def content_of(raw: Any) -> bytes | None:
    """The encoded bytes of a picture in a file or a table; None for an object. Raises OSError."""
    if isinstance(raw, dict):
        raw = raw.get("path") if raw.get("bytes") is None else raw["bytes"]
    if isinstance(raw, bytes):
        return raw
    if isinstance(raw, (str, os.PathLike)):
        with open(raw, "rb") as file:
            return file.read()
    return None


def check_sums(content: bytes) -> None:
    """Raise DataError if a chunk of a PNG file is not what its checksum says, or its end is missing; Pillow does not
    look at the checksums of pixels, and needs no end where all pixels are there."""
    place = 8
    while place + 12 <= len(content):
        end = place + 8 + int.from_bytes(content[place : place + 4], "big")
        if end + 4 > len(content):
            break
        is_needed = not content[place + 4] & 0x20  # notes and the like may be wrong
        if is_needed and zlib.crc32(content[place + 4 : end]) != int.from_bytes(content[end : end + 4], "big"):
            raise DataError("cannot be read as an image: damaged, a checksum is wrong")
        if content[place + 4 : place + 8] == b"IEND":
            return
        place = end + 4
    raise DataError("cannot be read as an image: truncated, its end is missing")


def alone_if_large(image: Image.Image) -> AbstractContextManager:
    """What to hold while an opened picture is decoded."""
    return _one_large if image.width * image.height > LARGE else nullcontext()


@contextmanager
def whole_image(raw: Any) -> Iterator[Image.Image]:
    """A picture as `open_image` opens it, to be decoded now; only one large one at a time.

    Raises DataError for PNG files with a wrong checksum or without an end, and what `open_image` raises."""
    content = content_of(raw)
    if content is not None and content.startswith(b"\x89PNG"):
        check_sums(content)
    with open_image(raw if content is None else content) as image, alone_if_large(image):
        yield image


def is_litter(name: str) -> bool:
    """Whether a folder is hidden, or one that programs make."""
    return name.startswith(".") or name.lower() in _LITTER


def is_image(name: str) -> bool:
    """Whether a file is an image by its name."""
    stem, _, suffix = name.rpartition(".")
    return bool(stem) and f".{suffix.lower()}" in EXTENSIONS


def files_below(folder: Path) -> Iterator[str]:
    """Files of a folder at any depth, no hidden ones. Links are followed, but not upwards, and into a folder once."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error

    seen = set(map(os.path.realpath, folder.absolute().parents))
    for parent, below, files in os.walk(folder, followlinks=True, onerror=refuse):
        place = os.path.realpath(parent)
        if place in seen:
            below.clear()
            continue
        seen.add(place)
        below[:] = sorted(name for name in below if not is_litter(name))
        yield from (os.path.join(parent, file) for file in files if not file.startswith("."))
