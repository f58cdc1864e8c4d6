"""What the kernels for AVX512-VNNI and AMX keep on the stack: constants of the C, for the largest layers of a network.

They gather as many padded rows of a map as fit into a cache, and columns of the few output pixels that are computed
together; those for VNNI unpack the weights of as many channels as fit into a cache, those for AMX of a whole layer, if
they are not too many. Other kernels have all of that in the arena, which is planned for microcontrollers.
"""

from collections.abc import Iterable
from typing import NamedTuple

from oncequant.memory import padded_inputs

CACHED = 2**15  # bytes, of what is gathered at once
MOST_TILES = 2**18  # bytes of unpacked weights: a layer with more is computed by VNNI


class Sizes(NamedTuple):
    """Those of a layer."""

    kernel: int
    pad: int
    stride: int
    size: int
    """Height = width of the input."""
    channels: int
    """Of the input."""
    out_size: int
    bits: int
    """Of the weights."""
    is_depthwise: bool
    out_channels: int


def stack_constants(layers: Iterable[Sizes]) -> str:
    """An enum, in bytes but for the largest kernel of depthwise convolutions."""
    most = dict(KERNEL=1, INPUTS=64, ROWS=64, TAPS=64, FOURS=64, TOGETHER=64, CHANNELS=64, TILES=64, UNPACKED=64)
    for layer in layers:
        kernel, channels = layer.kernel, layer.channels
        size = layer.size + 2 * layer.pad
        needs = {}
        if layer.is_depthwise:
            needs["KERNEL"] = kernel
            fours = -(-kernel // 4)  # of taps side by side
            needs["TAPS"] = kernel * kernel * channels
            needs["FOURS"] = kernel * fours * -(-channels // 16) * 64
            needs["TOGETHER"] = _some_rows(size, kernel, 64 * (layer.out_size + (fours - 1) * 4 // layer.stride))
            needs["CHANNELS"] = channels
        else:
            needs["INPUTS"] = inputs = padded_inputs(kernel * kernel * channels, layer.bits)
            needs["UNPACKED"] = _some_rows(-(-layer.out_channels // 16) * 16, 32, inputs)
            tiles = -(-kernel * kernel * channels // 64) * 64 * layer.out_channels
            needs["TILES"] = tiles if tiles <= MOST_TILES and layer.out_size > 1 else 0
        if kernel > 1 or layer.is_depthwise:
            needs["ROWS"] = _some_rows(size, kernel, size * channels)
        for name, value in needs.items():
            most[name] = max(most[name], value if name == "KERNEL" else -(-value // 64) * 64)
    return "enum { " + ", ".join(f"NETWORK_MOST_{name} = {value}" for name, value in most.items()) + " };"


def _some_rows(rows: int, kernel: int, pitch: int) -> int:
    """Bytes of as many rows as fit into a cache, at least those that an output row needs."""
    return min(rows * pitch, max(CACHED, kernel * pitch))
