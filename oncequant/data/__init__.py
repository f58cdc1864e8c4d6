"""A user's labelled images in, training batches out.

`sources` opens what the user names as `rows`: `folders` whose `layout` tells classes and splits, `tables` that hold
pictures, `listings` that name them; `columns` are theirs. `images` decodes one image, `splits` makes the three splits,
`batches` augments.
"""

from oncequant.data.batches import calibration_batches, eval_batches, steps_per_epoch, train_batches
from oncequant.data.images import DataError
from oncequant.data.names import Reading
from oncequant.data.sources import is_read
from oncequant.data.splits import Data, ResidentSplit, Split, StreamingSplit, check_images, load_data, native_size

__all__ = [
    "Data",
    "DataError",
    "Reading",
    "ResidentSplit",
    "Split",
    "StreamingSplit",
    "calibration_batches",
    "check_images",
    "eval_batches",
    "is_read",
    "load_data",
    "native_size",
    "steps_per_epoch",
    "train_batches",
]
