"""Codes of a few bits in bytes, as files and as kernels have them.

Bit planes: n codes of b bits in b * ceil(n / 8) bytes, the same layout in the package and in the ONNX file. Plane i
holds bit i of every code, eight codes a byte, the first code in the lowest bit. Any bit-width from 1 to 8 packs to
exactly its size, and unpacking is a few integer operations that every runtime has. Words of generated C: `pack_words`.
"""

import numpy as np

from oncequant.memory import LANES, WIDTHS


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


# -- words of generated C


def parts(bits: int) -> list[int]:
    """The widths that add up to `bits`, widest first. The widest has a code's lowest bits."""
    return [width for width in WIDTHS if bits & width]


def pack_words(codes: np.ndarray, bits: int) -> np.ndarray:  # (N, K) uint8 -> (words,) uint32
    """Codes of N output channels with K inputs each, as kernels in C unpack them by a shift and a mask.

    A word has the codes of one channel: byte j has those of inputs 4 s + j for as many steps s as fit, the first in the
    lowest bits. Blocks of up to `LANES` channels follow each other; in a block the `parts` of the codes; in a part the
    steps; and for each step the channels. Raises ValueError as `pack`.
    """
    if not 1 <= bits <= 8 or codes.size and codes.max() >= 2**bits:
        raise ValueError(f"codes must be in 0..{2**bits - 1} and bits in 1..8; got bits = {bits}")
    channels, inputs = codes.shape
    words, steps = [], -(-inputs // 4)
    for first in range(0, channels, LANES):
        block = codes[first : first + LANES].astype(np.uint32)
        low = 0
        for width in parts(bits):
            together = 8 // width
            groups = -(-steps // together)
            part = np.zeros((len(block), groups * together * 4), np.uint32)
            part[:, :inputs] = (block >> low) & (2**width - 1)
            shifts = 8 * np.arange(4, dtype=np.uint32) + width * np.arange(together, dtype=np.uint32)[:, None]
            packed = (part.reshape(len(block), groups, together, 4) << shifts).sum(axis=(2, 3), dtype=np.uint32)
            words.append(packed.T.reshape(-1))
            low += width
    if bits in (5, 7):  # kernels read whole words of one bit, so more words of four than there may be
        words.append(np.zeros(3 * LANES, np.uint32))
    return np.concatenate(words)
