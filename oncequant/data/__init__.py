"""A user's labelled images in, training batches out.

`sources` opens what the user names as `rows`: `folders` whose `layout` tells classes and splits, `tables` that hold
pictures, `listings` that name them; `columns` are theirs. `images` decodes one image, `splits` makes the three splits,
`scan` looks at every picture once (`pictures` is what it finds, `cache` keeps it, `summary` tells it),
`batches` augments.
"""

from oncequant.data.batches import calibration_batches, eval_batches, steps_per_epoch, train_batches
from oncequant.data.names import Reading
from oncequant.data.other import OtherImages, other_images
from oncequant.data.pictures import (
    SPLITS,
    Changes,
    Pictures,
    UnreadablePictures,
    changes,
    read_pictures,
    write_pictures,
)
from oncequant.data.sources import open_source
from oncequant.data.splits import Data, ResidentSplit, Split, StreamingSplit, load_data, native_size
from oncequant.data.summary import summary
from oncequant.images import DataError

__all__ = [
    "SPLITS",
    "Changes",
    "Data",
    "DataError",
    "OtherImages",
    "Pictures",
    "Reading",
    "ResidentSplit",
    "Split",
    "StreamingSplit",
    "UnreadablePictures",
    "calibration_batches",
    "changes",
    "eval_batches",
    "open_source",
    "load_data",
    "native_size",
    "other_images",
    "read_pictures",
    "steps_per_epoch",
    "summary",
    "train_batches",
    "write_pictures",
]
