"""Bit planes: n codes of b bits in b * ceil(n / 8) bytes, the same layout in the package and in the ONNX file.

Plane i holds bit i of every code, eight codes a byte, the first code in the lowest bit. Any bit-width from 1 to 8
packs to exactly its size, and unpacking is a few integer operations that every runtime has.
"""

import numpy as np


def pack(codes: np.ndarray, bits: int) -> np.ndarray:  # any shape, uint8 -> (bits, ceil(n / 8)) uint8
    """Planes of unsigned codes. Raises ValueError for codes that do not fit into `bits`."""
    flat = np.asarray(codes).reshape(-1)
    if not 1 <= bits <= 8 or flat.size and (flat.min() < 0 or flat.max() >= 2**bits):
        raise ValueError(f"codes must be in 0..{2**bits - 1} and bits in 1..8; got bits = {bits}")
    flat = flat.astype(np.uint8)
    return np.stack([np.packbits((flat >> i) & 1, bitorder="little") for i in range(bits)])


def unpack(planes: np.ndarray, n: int) -> np.ndarray:  # (bits, ceil(n / 8)) uint8 -> (n,) uint8
    """The n codes of `planes`. Raises ValueError if the planes are not those of n codes."""
    if planes.ndim != 2 or planes.dtype != np.uint8 or planes.shape[1] != -(-n // 8):
        raise ValueError(f"planes of {n} codes are (bits, {-(-n // 8)}) bytes, not {planes.shape} {planes.dtype}")
    codes = np.zeros(n, np.uint8)
    for i, plane in enumerate(planes):
        codes |= np.unpackbits(plane, count=n, bitorder="little") << i
    return codes
