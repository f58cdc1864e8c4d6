"""Pooling, padding and changes of shape of a traced network: one function for each operator of torch."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from oncequant.models.trace_steps import Call, Dealt, Map, Steps

RESHAPES = "flatten", "view", "reshape", "_unsafe_view", "unsqueeze", "squeeze", "unflatten"


def max_pool2d(steps: Steps, c: Call) -> Map:
    """A last window that is only half on the map, of ceil_mode, is one of padding behind it."""
    if any(d != 1 for d in c.a["dilation"]):
        raise c.refused("has a dilation; use 1")
    return pooled(steps, c, "maxpool")


def avg_pool2d(steps: Steps, c: Call) -> Map:
    """Of the whole map it is a mean. Zeros at the border count."""
    kernel, padding = tuple(c.a["kernel_size"]), tuple(c.a["padding"])
    if kernel == (c.x.size,) * len(kernel) and not any(padding):
        return replace(c.x, name=steps.between(c, "mean", c.x), size=1)
    if any(padding) and not c.a["count_include_pad"] or c.a["divisor_override"]:
        raise c.refused("does not count zeros at the border; use count_include_pad=True or padding 0")
    made = pooled(steps, c, "avgpool")
    window = steps.steps[made.name].window
    if window and window[2] != window[3]:
        raise c.refused("has ceil_mode; use maps whose size the stride divides")
    return made


def pooled(steps: Steps, c: Call, kind: str) -> Map:
    """With one number each for kernel, stride and padding."""
    kernel, padding = c.a["kernel_size"], c.a["padding"]
    stride = c.a["stride"] or kernel
    if any(len(set(pair)) > 1 for pair in (kernel, stride, padding)):
        raise c.refused("has a kernel, stride or padding that is not square; use one number each")
    size, before = c.shape[2], int(padding[0])
    after = max(before, (size - 1) * stride[0] + kernel[0] - c.x.size - before) if c.a["ceil_mode"] else before
    name = steps.between(c, kind, c.x, window=(int(kernel[0]), int(stride[0]), before, after))
    return replace(c.x, name=name, size=size)


def adaptive_avg_pool2d(steps: Steps, c: Call) -> Map:
    """A mean, or windows side by side."""
    size = c.shape[2]
    if c.shape[3] != size or c.x.size % size:
        raise c.refused(f"makes {c.shape[2:]} of {c.x.size} x {c.x.size}; use AdaptiveAvgPool2d(1)")
    if size == c.x.size and size > 1:
        return c.x
    if size == 1:
        return replace(c.x, name=steps.between(c, "mean", c.x), size=1)
    kernel = c.x.size // size
    return replace(c.x, name=steps.between(c, "avgpool", c.x, window=(kernel, kernel, 0, 0)), size=size)


def mean(steps: Steps, c: Call) -> Map:
    """Over height and width."""
    if c.x.flat or sorted(dim % 4 for dim in c.a.get("dim") or ()) != [2, 3]:
        raise c.refused("over something else than height and width")
    return replace(c.x, name=steps.between(c, "mean", c.x), size=1, flat=not c.a["keepdim"])


def pad(steps: Steps, c: Call) -> Map:
    """With zeros."""
    sides = tuple(int(n) for n in c.a["pad"])
    if c.a.get("mode", "constant") != "constant" or c.a.get("value"):
        raise c.refused("with something else than zeros; use ZeroPad2d")
    if len(sides) != 4 or min(sides) < 0 or sides[0] + sides[1] != sides[2] + sides[3]:
        raise c.refused(f"of {sides}; add as many pixels to the height as to the width")
    if not any(sides):
        return c.x
    return replace(c.x, name=steps.between(c, "pad", c.x, window=sides), size=c.shape[2])


def flatten(steps: Steps, c: Call) -> Any:
    """Every change of shape: to (N, C x H x W), back to (N, C, 1, 1), or channels to groups of them."""
    wanted = c.shape[1:]
    if wanted in (c.x.shape, replace(c.x, flat=True).shape):
        return replace(c.x, flat=len(wanted) == 1)
    if c.x.size == 1 and wanted[:1] == (c.x.channels,) and {*wanted[1:]} <= {1}:
        return replace(c.x, flat=False)
    if not c.x.flat and len(wanted) == 4 and wanted[0] * wanted[1] == c.x.channels and wanted[2:] == c.x.shape[1:]:
        return Dealt(c.x, wanted[0], wanted[1])
    raise c.refused(f"makes {c.shape} of images, which is not understood")


def regrouped(steps: Steps, c: Call) -> Any:
    """The rest of a channel shuffle: the two dimensions change places, and become one again."""
    x: Dealt = c.first
    turns = c.op == "transpose" and sorted((c.a["dim0"] % 5, c.a["dim1"] % 5)) == [1, 2]
    if turns or c.op == "permute" and [dim % 5 for dim in c.a["dims"]] == [0, 2, 1, 3, 4]:
        return replace(x, turned=not x.turned)
    if c.op in RESHAPES and c.shape[1:] == x.x.shape:
        return shuffled(steps, c, x.x, x.groups, x.each) if x.turned else x.x
    raise c.refused("of channels in groups; only a channel shuffle is understood")


def channel_shuffle(steps: Steps, c: Call) -> Map:
    """Channels of groups are dealt out in turn."""
    return shuffled(steps, c, c.x, c.a["groups"], c.x.channels // c.a["groups"])


def shuffled(steps: Steps, c: Call, x: Map, groups: int, each: int) -> Map:
    """A channel shuffle."""
    return replace(x, name=steps.between(c, "shuffle", x, channels=(groups, each)))


def chunk(steps: Steps, c: Call) -> list[Map]:
    """Parts of the channels, as large as they can be alike."""
    return parts(steps, c, [-(-c.x.channels // c.a["chunks"])])


def split(steps: Steps, c: Call) -> list[Map]:
    """Parts of the channels."""
    sizes: Any = c.a.get("split_size", c.a.get("split_sizes"))
    return parts(steps, c, list(sizes) if isinstance(sizes, (list, tuple)) else [sizes])


def parts(steps: Steps, c: Call, sizes: list[int]) -> list[Map]:
    """Of these sizes, or of one size as often as it fits."""
    if c.a["dim"] % 4 != 1 or c.x.flat and c.x.size > 1:
        raise c.refused("of something else than channels")
    if len(sizes) == 1:
        whole, rest = divmod(c.x.channels, sizes[0])
        sizes = [sizes[0]] * whole + [rest] * (rest > 0)
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [sliced(steps, c, end - size, end) for size, end in zip(sizes, ends)]


def sliced_by(steps: Steps, c: Call) -> Map:
    """Some of the channels."""
    first, last, dim = c.a["start"] or 0, c.a["end"], c.a["dim"]
    last = min(c.x.channels if last is None else last, c.x.channels) if dim == 1 else last
    if c.shape[1:] == c.x.shape:
        return c.x
    if dim != 1 or c.a["step"] != 1 or c.x.flat and c.x.size > 1 or min(first, last) < 0:
        raise c.refused("of something else than channels, counted from the first")
    return sliced(steps, c, first, last)


def narrow(steps: Steps, c: Call) -> Map:
    """Some of the channels."""
    if c.a["dim"] != 1 or c.x.flat and c.x.size > 1:
        raise c.refused("of something else than channels")
    return sliced(steps, c, c.a["start"], c.a["start"] + c.a["length"])


def sliced(steps: Steps, c: Call, first: int, last: int) -> Map:
    """Channels from the first to before the last."""
    if (first, last) == (0, c.x.channels):
        return c.x
    return replace(c.x, name=steps.between(c, "slice", c.x, channels=(first, last)), channels=last - first)


SHAPES: Mapping[str, Callable[[Steps, Call], Any]] = {
    "max_pool2d": max_pool2d,
    "avg_pool2d": avg_pool2d,
    "adaptive_avg_pool2d": adaptive_avg_pool2d,
    "mean": mean,
    "pad": pad,
    "constant_pad_nd": pad,
    **dict.fromkeys(RESHAPES, flatten),
    "channel_shuffle": channel_shuffle,
    "chunk": chunk,
    "split": split,
    "split_with_sizes": split,
    "slice": sliced_by,
    "narrow": narrow,
}
