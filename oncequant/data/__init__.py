"""A user's labelled images in, training batches out.

`sources` opens what the user names (`folders`, `tables`) as `rows`, `images` decodes one image, `splits` makes the
three splits, `batches` augments.
"""

from oncequant.data.batches import calibration_batches, eval_batches, steps_per_epoch, train_batches
from oncequant.data.images import DataError
from oncequant.data.other import OtherImages, other_images
from oncequant.data.splits import Data, ResidentSplit, Split, StreamingSplit, check_images, load_data, native_size

__all__ = [
    "Data",
    "DataError",
    "OtherImages",
    "ResidentSplit",
    "Split",
    "StreamingSplit",
    "calibration_batches",
    "check_images",
    "eval_batches",
    "load_data",
    "native_size",
    "other_images",
    "steps_per_epoch",
    "train_batches",
]
