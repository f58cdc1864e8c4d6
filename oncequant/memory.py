"""Bytes of RAM and of flash that a network takes in C, from its Plan alone: the costs `ram_bytes` and `flash_bytes`.

The kernel calls are those of `oncequant.structure`, what each takes is arithmetic on LayerSpecs that `program`, `place`
and `packing` of `oncequant.export` share. A batch of architectures is grouped by which layers they have: those of a
group have the same calls. Its numbers are one product of two matrices, how often each call needs what and the bytes of
that in every architecture.
"""

from collections.abc import Mapping

from oncequant.arch import LayerSpec, Number

Specs = Mapping[str, LayerSpec]

ALIGNMENT = 16  # bytes, of maps
COLUMNS = 4  # output pixels that a convolution computes together, at most: bytes of scratch
LANES = 8  # output channels whose words lie side by side
WIDTHS = (8, 4, 2, 1)  # of the parts that bit-widths are split into: 3 bits are 2 + 1, 6 are 4 + 2
LAYER_STRUCT = 4 * 17  # bytes of what holds the tables and numbers of a layer together


# -- bytes of one thing; of ints, or of NumPy vectors


def aligned(size: Number) -> Number:
    """Rounded up to `ALIGNMENT`."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def padded_inputs(inputs: Number, bits: Number) -> Number:
    """Inputs that kernels read for each output channel: whole words of the narrowest part."""
    together = 4 * 8 // (bits & -bits)
    return -(-inputs // together) * together


def packed_words(channels: Number, inputs: Number, bits: Number) -> Number:
    """Words of `packing.pack_words`."""
    steps = -(-inputs // 4)
    groups = sum(((bits & width) > 0) * -(-steps // (8 // width)) for width in WIDTHS)
    return channels * groups + 3 * LANES * ((bits == 5) | (bits == 7))


def layer_scratch(inputs: Number, channels: Number, bits: Number, depthwise: bool) -> Number:
    """Bytes that a layer with so many inputs per output needs beside its maps.

    Those that one output pixel reads, and columns: four pixels of bytes, or two of 16 bits on a Cortex-M. Depthwise
    with so many channels: pairs of kernel positions, their weights in 16 bits, and a row of zero points.
    """
    if depthwise:
        return 4 * LANES * -(-channels // LANES) * -(-inputs // 2) + channels
    return aligned(inputs) + COLUMNS * padded_inputs(inputs, bits)


def mean_scratch(channels: Number) -> Number:
    """Bytes of a mean's sums."""
    return 4 * channels
