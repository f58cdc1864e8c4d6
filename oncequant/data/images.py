"""Square images at another resolution."""

import torch.nn.functional as F
from torch import Tensor


def resize(images: Tensor, resolution: int) -> Tensor:  # (N, C, S, S) -> (N, C, R, R)
    """Square images at another resolution, bilinear with antialiasing; the identity at their own."""
    if images.shape[-1] == resolution:
        return images
    return F.interpolate(images, (resolution, resolution), mode="bilinear", antialias=True)
