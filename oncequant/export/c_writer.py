"""C99 of a program: `network.c`, `network.h`, a self-test, a makefile, a page to read. Kernels are in `kernels/`.

Everything that depends on the network is a constant table or a number in a call. What the C computes, bit for bit, is
`simulate.run_integer`.
"""

from collections.abc import Iterator, Sequence
from importlib import resources

import numpy as np
import torch
from torch import Tensor

from oncequant.export.graph import Graph, Grid, Weights
from oncequant.export.packing import pack_words
from oncequant.export.program import Placement, Program, Step, geometry, is_depthwise
from oncequant.export.simulate import addition, bias_scale, run_integer
from oncequant.export.stack import Sizes, stack_constants
from oncequant.plan import POOL
from oncequant.structure import LOGITS, PIXELS, CannotRun

TESTED = 20  # pictures of the self-test
MOST = 2**31 - 1  # of a sum
PER_LINE = 12

KERNELS = [  # in order
    f"{name}.h" for name in "common portable neon cortex_m vnni vnni_layers amx vnni_maps columns avx2 layers".split()
]


class Constants:
    """Tables of a program in C, and how many bytes they have."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.bytes = 0

    def add(self, kind: str, name: str, values: np.ndarray) -> str:
        """A table; returns its name."""
        flat = values.reshape(-1)
        self.bytes += flat.nbytes
        words = [float(v).hex() + "f" for v in flat] if flat.dtype == np.float32 else [str(v) for v in flat.tolist()]
        if kind == "uint32_t":
            words = [f"{v:#x}u" for v in flat.tolist()]
        lines = [", ".join(words[i : i + PER_LINE]) for i in range(0, len(words), PER_LINE)]
        self.text.append(f"static const {kind} {name}[{len(words)}] = {{\n    " + ",\n    ".join(lines) + "};\n")
        return name

    def add_layer(self, name: str, tables: Sequence[str], numbers: Sequence[int], comment: str) -> str:
        """What holds a layer together, on a microcontroller four bytes each, the last two in four; returns its name."""
        values = ", ".join(map(str, [*tables, *numbers]))
        self.text.append(f"static const network_layer {name} = {{{values}}}; /* {comment} */\n")
        self.bytes += 4 * (len(tables) + len(numbers) - 1)
        return name


def sources(program: Program, placement: Placement) -> tuple[dict[str, str], int]:
    """(files by name, bytes of the constants that end up in flash). Raises CannotRun."""
    constants, calls = Constants(), []
    for i, step in enumerate(program.steps):
        calls.append(_call(step, i, program, placement, constants))
    files = {
        "network.c": _network_c(program, constants, calls),
        "network.h": _network_h(program.graph, placement),
        "network_test.c": _test_c(program.graph),
        "network.mk": MAKEFILE,
        "network.md": _readme(program, placement, constants.bytes),
    }
    return files, constants.bytes


def _call(step: Step, i: int, program: Program, placement: Placement, constants: Constants) -> str:
    """The call of a step, after its tables are added."""

    def place(name: str) -> str:
        return name if name in (PIXELS, LOGITS) else f"memory + {placement.offsets[name]}"

    maps, scratch = program.maps, f"memory + {placement.scratch[i]}"
    sources, target = [place(name) for name in step.inputs], place(step.output)
    if step.op == "pixels":
        assert step.table is not None
        after = maps[step.output]
        table = constants.add("uint8_t", f"table_{i}", step.table.numpy())
        return f"from_pixels(pixels, {target}, {after.size * after.size}, {after.channels}, {table});"
    before = maps[step.inputs[0]]
    if step.weights is not None:
        name = _layer(step, i, program, constants)
        if step.is_depthwise:
            return f"depthwise(&{name}, {sources[0]}, {target}, {scratch});"
        if step.groups > 1:
            words = len(_words(step.weights, step.groups)) // step.groups
            return f"grouped(&{name}, {step.groups}, {words}, {sources[0]}, {target}, {scratch});"
        codes, logits = ("memory", LOGITS) if step.output == LOGITS else (target, "0")
        return f"layer(&{name}, {sources[0]}, {codes}, {logits}, {scratch});"
    if step.op == "logits":
        (of,) = step.grids
        return f"dequantize({sources[0]}, logits, {before.channels}, {of.zero_point}, {_float(torch.tensor(of.step))});"
    pixels, channels, grid = before.size * before.size, before.channels, step.grid
    assert grid is not None
    most, last = grid.top, f"{grid.zero_point}, {grid.top}"
    match step.op:
        case "lookup":
            assert step.table is not None
            entries = 2 ** step.grids[0].bits
            table = constants.add("uint8_t", f"table_{i}", step.table[:entries].numpy())
            return f"lookup({sources[0]}, {target}, {before.bytes}, {table}, {entries});"
        case "add":
            a, b = step.grids
            terms = ", ".join(_float(value) for value in _checked_addition(step.name, a, b, grid))
            return f"add({sources[0]}, {sources[1]}, {target}, {before.bytes}, {terms}, {most});"
        case "multiply":
            a, b = step.grids
            ratio = torch.tensor(a.step) * torch.tensor(b.step) / torch.tensor(grid.step)
            shape = (1, before.bytes) if maps[step.inputs[1]].size == before.size else (pixels, channels)
            sizes = f"{shape[0]}, {shape[1]}, {a.zero_point}, {b.zero_point}"
            return f"multiply({sources[0]}, {sources[1]}, {target}, {sizes}, {_float(ratio)}, {last});"
        case "mean":
            ratio = torch.tensor(step.grids[0].step) / (torch.tensor(grid.step) * pixels)
            sizes = f"{pixels}, {channels}, {step.grids[0].zero_point}"
            return f"mean({sources[0]}, {target}, {sizes}, {_float(ratio)}, {last}, {scratch});"
        case "maxpool" | "subsample":
            return f"{step.op}({sources[0]}, {target}, {before.size}, {channels});"
        case "pool":
            kernel, stride, start, _ = step.window or POOL
            sizes = f"{before.size}, {channels}, {kernel}, {stride}, {start}, {maps[step.output].size}"
            return f"pool({sources[0]}, {target}, {sizes});"
        case "concat":
            parts, start, total = [], 0, maps[step.output].channels
            for n, (source, of) in enumerate(zip(sources, step.grids)):
                count, values = maps[step.inputs[n]].channels, of.dequantize(torch.arange(2.0**of.bits))
                table = constants.add("uint8_t", f"table_{i}_{n}", grid.quantize(values).numpy().astype(np.uint8))
                parts.append(f"join({source}, {target}, {pixels}, {count}, {start}, {total}, {table});")
                start += count
            return "\n    ".join(parts)
        case "slice" | "shuffle":
            assert step.channels is not None
            first, second = step.channels
            sizes = f"{pixels}, {channels}, {first}, {second - first if step.op == 'slice' else second}"
            return f"{step.op}_channels({sources[0]}, {target}, {sizes});"
        case "pad":
            left, _, above, _ = step.window or POOL
            sizes = f"{before.size}, {channels}, {above}, {left}, {maps[step.output].size}, {step.grids[0].zero_point}"
            return f"pad_map({sources[0]}, {target}, {sizes});"
        case "pad_channels":
            assert step.channels is not None
            sizes = f"{pixels}, {channels}, {step.channels[0]}, {step.channels[1]}, {step.grids[0].zero_point}"
            return f"pad_channels({sources[0]}, {target}, {sizes});"
    raise CannotRun(f"{step.name}: no kernel for {step.op}")


def _layer(step: Step, i: int, program: Program, constants: Constants) -> str:
    """The constants of a layer; returns the name of what holds them together."""
    weights, (before,) = step.weights, step.grids
    assert weights is not None
    inputs = weights.weight[0].numel()
    if inputs * (2**before.bits - 1) * (2**weights.bits - 1) * (1 + weights.odd) > MOST:
        raise CannotRun(f"{step.name}: {inputs} inputs per output overflow a 32-bit accumulator")
    size, channels, kernel, pad, out_size = geometry(step, program.maps)
    zero, most = (step.grid.zero_point, step.grid.top) if step.grid else (0, 0)
    factor, offset = (2, 2**weights.bits - 1) if weights.odd else (1, 2 ** (weights.bits - 1))
    names = [
        constants.add("uint32_t", f"weights_{i}", _words(weights, step.groups)),
        constants.add("int32_t", f"bias_{i}", _bias(weights, before)),
        constants.add("float", f"ratio_{i}", _ratio(weights, before, step.grid)),
    ]
    numbers = [weights.bits, factor, offset, weights.shift, size, channels, kernel, weights.stride, out_size]
    numbers += [len(weights.weight), before.zero_point, 2**before.bits - 1, zero, most, pad, weights.dilation]
    return constants.add_layer(f"layer_{i}", names, numbers, step.name)


def _words(weights: Weights, groups: int) -> np.ndarray:
    """The packed codes of a layer, group by group."""
    codes = weights.unsigned_codes().numpy().astype(np.uint8)
    if codes.ndim == 4:
        codes = codes.transpose(0, 2, 3, 1)  # channels last
    rows = codes.reshape(len(codes), -1)
    if is_depthwise(weights):
        rows = rows.T.reshape(1, -1)  # one kernel position after the other
    return np.concatenate([pack_words(group, weights.bits) for group in np.split(rows, groups)])


def _bias(weights: Weights, grid: Grid) -> np.ndarray:
    """Biases with what the zero point of the input adds, modulo 2^32."""
    totals = weights.weight.flatten(1).sum(1, dtype=torch.int64) * grid.zero_point * 2**weights.shift
    return (weights.bias.to(torch.int64) - totals).numpy().astype(np.uint32).astype(np.int32)


def _ratio(weights: Weights, before: Grid, after: Grid | None) -> np.ndarray:
    unit = bias_scale(weights, before)
    return (unit if after is None else unit / torch.tensor(after.step)).numpy()


def _checked_addition(name: str, a: Grid, b: Grid, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """Terms whose sums are exact in double, so that one rounding or two give the same. Raises CannotRun."""
    terms = addition(a, b, grid)
    largest = float(terms[0]) * 2**a.bits + float(terms[1]) * 2**b.bits + abs(float(terms[2]))
    least = min(abs(float(term)) for term in terms if term)
    if largest / least > 2.0**28:  # 24 bits of a float below that are in the 52 of a double
        raise CannotRun(f"{name}: the steps of what it adds are too far apart")
    return terms


def _float(value: Tensor) -> str:
    return float(value).hex() + "f"


# -- files


def _network_c(program: Program, constants: Constants, calls: Sequence[str]) -> str:
    layers = [(step, step.weights) for step in program.steps if step.weights is not None]
    rare = "\n#define NETWORK_DILATED" * any(weights.dilation > 1 for _, weights in layers)
    rare += "\n#define NETWORK_UNEVEN" * any(step.is_depthwise and weights.groups % 4 for step, weights in layers)
    bits = sorted({weights.bits for _, weights in layers})
    classes = ", ".join(_string(name) for name in program.graph.classes)
    body = "\n".join(f"    {call}" for call in calls)
    return f"""\
/* A network for images of {program.graph.resolution} x {program.graph.resolution} pixels. Generated: see network.md. */
#include <float.h>
#include <stdint.h>
#include <string.h>

#include "network.h"

#define NETWORK_BITS(CASE) {" ".join(f"CASE({b})" for b in bits)}{rare}
{stack_constants(_sizes(program))}

{kernel_text()}
/* ---- this network */

{"".join(constants.text)}
const char *const network_class_names[NETWORK_CLASSES] = {{{classes}}};

int network_run(const uint8_t *pixels, float *logits, void *arena)
{{
    uint8_t *const memory = arena;
    int best = 0;
    if (!pixels || !logits || !arena || (uintptr_t)arena % 16) return -1;
{body}
    for (int i = 1; i < NETWORK_CLASSES; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}}
"""


def _sizes(program: Program) -> Iterator[Sizes]:
    for step in program.steps:
        if step.weights is not None:
            weights, own = step.weights, geometry(step, program.maps)
            channels, outputs = own.channels // step.groups, len(weights.weight) // step.groups
            shape = own.pad, weights.stride, own.size, channels, own.out_size, weights.bits
            yield Sizes(own.kernel, *shape, step.is_depthwise, outputs)


def kernel_text() -> str:
    """The C of all kernels and backends, behind headers and NETWORK_BITS."""
    return "\n".join((resources.files("oncequant.export") / "kernels" / name).read_text() for name in KERNELS)


def _string(text: str) -> str:
    """A C string literal, in ASCII."""
    shown = (chr(b) if 32 <= b < 127 and chr(b) not in '"\\?' else f"\\{b:03o}" for b in text.encode())
    return '"' + "".join(shown) + '"'


def _network_h(graph: Graph, placement: Placement) -> str:
    return f"""\
/* A network that tells {len(graph.classes)} classes apart. Generated: see network.md. */
#ifndef NETWORK_H
#define NETWORK_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

#define NETWORK_SIZE {graph.resolution} /* height and width of a picture in pixels */
#define NETWORK_CHANNELS {graph.channels} /* {"grey" if graph.channels == 1 else "red, green, blue"} */
#define NETWORK_PIXELS (NETWORK_SIZE * NETWORK_SIZE * NETWORK_CHANNELS)
#define NETWORK_CLASSES {len(graph.classes)}
#define NETWORK_ARENA_BYTES {placement.bytes}

extern const char *const network_class_names[NETWORK_CLASSES];

/* Classify one picture.
 *
 * pixels: NETWORK_PIXELS bytes, row by row, the channels of a pixel side by side.
 * logits: NETWORK_CLASSES numbers, written.
 * arena:  NETWORK_ARENA_BYTES of working memory, aligned to 16 bytes; its contents mean nothing between calls.
 *
 * Returns the class with the largest logit, or -1 if a pointer is null or the arena is not aligned.
 * Nothing else is read or written, so calls with different arenas may run at the same time. */
int network_run(const uint8_t *pixels, float *logits, void *arena);

#ifdef __cplusplus
}}
#endif

#endif
"""


def self_test_pictures(graph: Graph) -> Tensor:  # (TESTED, C, R, R) uint8
    """Pictures of the self-test, made by arithmetic: noise of falling strength on a ramp. test.c makes the same."""
    size, channels = graph.resolution, graph.channels
    count = TESTED * size * size * channels
    state, values = 1, np.empty(count, np.int64)
    for i in range(count):
        state = (state * 1664525 + 1013904223) % 2**32
        values[i] = state >> 24
    noise = values.reshape(TESTED, size, size, channels)
    row, column = np.arange(size)[:, None, None], np.arange(size)[:, None]
    ramp = (row * 5 + column * 3) % 256
    part = np.arange(TESTED)[:, None, None, None]
    pictures = (noise * (TESTED - part) + ramp * part) // TESTED
    return torch.from_numpy(pictures.astype(np.uint8)).permute(0, 3, 1, 2).contiguous()


def _test_c(graph: Graph) -> str:
    with torch.no_grad():
        logits = run_integer(graph, self_test_pictures(graph).float())
    rows = ["    {" + ", ".join(float(v).hex() + "f" for v in row) + "}" for row in logits]
    return f"""\
/* Whether network.c, as it was compiled, computes to the last bit what it should: on pictures made by arithmetic. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "network.h"

enum {{ PICTURES = {TESTED} }};

static const float expected[PICTURES][NETWORK_CLASSES] = {{
{("," + chr(10)).join(rows)}}};

static uint8_t pixels[NETWORK_PIXELS];
static float logits[NETWORK_CLASSES];
static uint64_t arena[(NETWORK_ARENA_BYTES + 15) / 8];

int main(void)
{{
    uint8_t *const memory = (uint8_t *)arena + (16 - (uintptr_t)arena % 16) % 16;
    uint32_t state = 1;
    int equal = 0;
    for (int picture = 0; picture < PICTURES; picture++) {{
        for (int i = 0; i < NETWORK_PIXELS; i++) {{
            const int row = i / NETWORK_CHANNELS / NETWORK_SIZE, column = i / NETWORK_CHANNELS % NETWORK_SIZE;
            state = state * 1664525u + 1013904223u;
            const int noise = (int)(state >> 24), ramp = (row * 5 + column * 3) % 256;
            pixels[i] = (uint8_t)((noise * (PICTURES - picture) + ramp * picture) / PICTURES);
        }}
        network_run(pixels, logits, memory);
        equal += !memcmp(logits, expected[picture], sizeof logits);
    }}
    printf("%d of %d pictures equal\\n", equal, PICTURES);
    return equal != PICTURES;
}}
"""


MAKEFILE = """\
CC = cc
CFLAGS = -O3 -march=native
# numbers must be rounded as written: no contraction, no -ffast-math
override CFLAGS += -std=c99 -ffp-contract=off -Wall -Wextra

test:
\t$(CC) $(CFLAGS) network_test.c network.c -o network_test
\t./network_test

.PHONY: test
"""


def _readme(program: Program, placement: Placement, constants: int) -> str:
    graph = program.graph
    size, colours = graph.resolution, "grey" if graph.channels == 1 else "red, green and blue"
    return f"""\
# A network in C

It tells {len(graph.classes)} classes apart in pictures of {size} x {size} pixels, {colours}, bytes 0 to 255. Larger
pictures are first cut to a square and resized. The interface is `network.h`; the names of the classes are in it.

    make -f network.mk test                                   # compile and run the self-test on this machine
    make -f network.mk test CFLAGS="-O3 -DNETWORK_PORTABLE"   # plain C

It is C99 for GCC and clang, without heap and, but for AMX, without variables of its own; of libraries it needs what
compilers take for granted, such as memcpy. It has {constants} bytes of constants and works in an arena of
{placement.bytes} bytes.
Kernels for aarch64 with dot products and Cortex-M with DSP are chosen when it is compiled, for example by
`-mcpu=cortex-m4 -mthumb -mfloat-abi=hard -mfpu=fpv4-sp-d16`. An x86-64 processor chooses when it runs: AVX2
(`-DNETWORK_NO_AVX2` leaves out all of these), AVX512-VNNI with VBMI2 (`-DNETWORK_NO_VNNI`), and on Linux AMX
(`-DNETWORK_NO_AMX`), with one variable that is set before `main`. The last two take more stack. Cores without a
floating-point unit scale by whole numbers, with the same results. Compile with `-std=c99
-ffp-contract=off`, never with `-ffast-math`: then logits are equal to the last bit on every machine.
`sha256sum -c network.sha256` tells whether the files are as they were.
"""
