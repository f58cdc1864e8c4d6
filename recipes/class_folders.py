"""A data set of parquet files or the hub as class folders, OUT/train/cat/00000.jpg, with the images' bytes as they are.

python recipes/class_folders.py path/to/parquet out
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from PIL import Image

from oncequant.data.sources import open_source


@dataclass(frozen=True)
class Options:
    """From where and where to."""

    data: Annotated[str, tyro.conf.Positional]
    """Folder of parquet files, or a hub name."""
    out: Annotated[Path, tyro.conf.Positional]


def main(options: Options) -> None:
    """Write the files."""
    for split, records in open_source(options.data).splits.items():
        for row, label in enumerate(records.labels()):
            content = records.rows[row][records.image]["bytes"]
            with Image.open(io.BytesIO(content)) as image:
                suffix = (image.format or "png").lower()
            name = records.names[label] if records.names else str(label)
            path = options.out / split / name / f"{row:06d}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


if __name__ == "__main__":
    main(tyro.cli(Options))
