"""Pictures of the test split, small, as text that a page holds."""

import base64
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from oncequant.answers import read_answers
from oncequant.data import Data
from oncequant.files import FileError
from oncequant.progress import console
from oncequant.run_folder import read_settings
from oncequant.run_images import check_images

EXACT = 32  # px: pictures up to this side are kept as they are; larger ones lose what the eye does not miss
SIDE = 64  # px, the most


def images_of(folder: Path, moved: str | None = None) -> tuple[Data | None, str]:
    """The images of a run folder, read again from where it has them or from where they are now, or None and why they
    cannot be. Raises DataError or FileError if they are not where they are said to be now."""
    try:
        settings = read_settings(folder)
        if moved is None and settings.data is None:
            raise FileError(f"{folder} was made of Python objects, which only Python can open again")
        place = moved or settings.data
        if place != "digits":
            console.print(f"reading {place} for pictures of mistakes (not with --no-pictures)", soft_wrap=True)
        data = settings.load_data(torch.device("cpu"), moved, run_dir=folder)
        check_images(folder, data, changed_test=True)  # answers to other pictures are found out one by one
        return data, ""
    except (OSError, ValueError, MemoryError) as error:
        if moved is not None:
            raise
        return None, f"{error}"


def answered_images(path: Path, data: Data | None) -> bool:
    """Whether answers in a file are those to the test images of `data`. Raises FileError."""
    return data is not None and read_answers(path, data.test_digest) is not None


def data_uris(data: Data, indices: Iterable[int]) -> dict[int, str]:
    """The test images with these numbers, by number."""
    wanted = sorted(set(indices))
    pixels = data.test.images(torch.tensor(wanted)).cpu().numpy() if wanted else ()  # (n, C, S, S)
    return {index: _data_uri(one) for index, one in zip(wanted, pixels)}


def _data_uri(pixels: np.ndarray) -> str:
    """uint8 (C, S, S)."""
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    kind, file = "png" if image.width <= EXACT else "jpeg", io.BytesIO()
    image.thumbnail((SIDE, SIDE))
    image.save(file, kind, **({"optimize": True} if kind == "png" else {"quality": 80}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
