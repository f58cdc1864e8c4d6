"""One image: whatever Pillow reads, a PIL image, an array or a tensor, to a uint8 square.

Squares have side S and 1 channel or 3; transparency becomes white, 16-bit values are divided by 257, EXIF orientation
is applied.
"""

import io
import math
import os
from typing import Any

import numpy as np
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

GREY_MODES = frozenset(["1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N", "F"])


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
    if not isinstance(raw, (np.ndarray, Tensor)):
        raise DataError(f"an image must be a PIL image, an array or a tensor, not {type(raw).__name__}")
    array = raw.detach().cpu().numpy() if isinstance(raw, Tensor) else raw
    if array.ndim == 3:
        # Tensors are channels first and arrays channels last by custom; only 3 x 3 images leave that to custom.
        first, last = array.shape[0] in (1, 3, 4), array.shape[-1] in (1, 3, 4)
        if first and (isinstance(raw, Tensor) or not last):
            array = array.transpose(1, 2, 0)
        elif not last:
            raise DataError(f"an image of shape {array.shape} is none of HxW, HxWxC and CxHxW with 1, 3 or 4 channels")
        array = array[:, :, 0] if array.shape[2] == 1 else array
    elif array.ndim != 2:
        raise DataError(f"an image of shape {array.shape} is none of HxW, HxWxC and CxHxW")
    return Image.fromarray(np.ascontiguousarray(_eight_bits(array)))


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


def resize(images: Tensor, resolution: int) -> Tensor:  # (N, C, S, S) -> (N, C, R, R)
    """Square images at another resolution, bilinear with antialiasing; the identity at their own."""
    if images.shape[-1] == resolution:
        return images
    return F.interpolate(images, (resolution, resolution), mode="bilinear", antialias=True)
