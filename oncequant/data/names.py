"""What splits and pictures are called in public data sets, and what is accepted as a source."""

import os

SPLIT_NAMES = {  # compared in lower case
    **dict.fromkeys(["train", "training"], "train"),
    **dict.fromkeys(["validation", "valid", "val", "dev"], "validation"),
    **dict.fromkeys(["test", "testing"], "test"),
}
EXTENSIONS = frozenset(".jpg .jpeg .jpe .jfif .png .bmp .gif .webp .tif .tiff .ppm .pgm .pbm .jp2 .avif".split())
ACCEPTED = (
    "accepted are 'digits', a folder of class folders (directly inside, or below train/ and optionally validation/ and "
    "test/), a folder with train-*.parquet or train/*.parquet, or the name of a Hugging Face hub dataset such as "
    "'uoft-cs/cifar10'"
)


def is_image(name: str) -> bool:
    """Whether a file is an image by its name."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS
