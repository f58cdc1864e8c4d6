"""How sure a measured accuracy is."""

from statistics import NormalDist


def share_interval(share: float, images: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of an accuracy (0 to 1) that was measured on so many images drawn at random: Wilson's, which holds for
    few images and near 0 and 1, too. Raises ValueError for no images, or for what is no share."""
    if images < 1 or not 0 <= share <= 1:
        raise ValueError(f"an accuracy of {share} on {images} images: use 0 to 1, on at least one image")
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre, scale = share + z * z / (2 * images), 1 + z * z / images
    half = z * (share * (1 - share) / images + (z / (2 * images)) ** 2) ** 0.5
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)
