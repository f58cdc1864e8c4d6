"""Networks in C: bit-equal to the integer simulator on every backend that this machine can run, in little memory."""

import shutil
import subprocess
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from random_graphs import random_graph
from small_export import CLASSES, digits, lowered, preset, subnet_of

from oncequant import load_compiled
from oncequant.export.c import FILES, FORMAT
from oncequant.export.c_writer import self_test_pictures, sources
from oncequant.export.cortex_m import EmulationError, emulate, missing_tools
from oncequant.export.graph import Grid, Node, Weights
from oncequant.export.lower import lower
from oncequant.export.packing import pack_words, parts
from oncequant.export.program import geometry, place, program, scratch_bytes
from oncequant.export.simulate import run_integer
from oncequant.family import with_bits
from oncequant.files import FileError
from oncequant.measure import calibrated_subnet, initialise_quantizers
from oncequant.memory import padded_inputs
from oncequant.models import build_network
from oncequant.models.elastic_resnet import PRESETS as RESIDUAL
from oncequant.models.resnet import ResNetConfig
from oncequant.structure import CannotRun

CPU = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
HAS_VNNI, HAS_AMX = "avx512_vnni" in CPU, "amx_int8" in CPU
AARCH64 = ("aarch64-linux-gnu-gcc", "qemu-aarch64")
STRICT = "-std=c99 -ffp-contract=off -Wall -Wextra -Werror".split()


def residual(precisions=(404,), **options):
    """A graph of DNAS's family, with pooling, shortcuts that pad channels, and odd codes by DoReFa."""
    config = ResNetConfig(
        stage_blocks=(1, 1),
        stage_widths=(6, 10),
        resolutions=(16,),
        precisions=precisions,
        edge_bits=8,
        projections=False,
        **options,
    )
    torch.manual_seed(0)
    net, images = build_network(config), torch.randn(40, 3, 16, 16)
    initialise_quantizers(net, images)
    arch = net.space.smallest()
    calibration = [(images, None)]
    return lower(calibrated_subnet(net, arch, calibration), arch, (0.5,) * 3, (0.25,) * 3, CLASSES, 16, calibration)


@cache
def graph_of(name):
    """Graphs of all families, bit-widths, and operations."""
    if name == "mixed":  # each layer of other bits, inputs with zero points, as QFA has them
        config = replace(preset("nano", (2, 3, 4)), steps_per_bits=True, act_quantizer="batchquant")
        return lowered(*subnet_of(config, seed=3))
    if name in ("pooled", "odd codes"):
        return residual((303,), large_stem=True) if name == "pooled" else residual((102,), weight_quantizer="dorefa")
    family, bits = name.rsplit(" ", 1)
    if family in RESIDUAL:
        resolution = 32 if family == "resnet-cifar" else None  # rows of 32 and 16 pixels: AMX reads them where they are
        config = with_bits(replace(RESIDUAL[family], edge_bits=8), int(bits))
        return lowered(*subnet_of(config, seed=int(bits), resolution=resolution))
    return lowered(*subnet_of(preset(family, int(bits)), seed=int(bits), resolution=20 if family == "cifar" else 10))


pytestmark = pytest.mark.usefixtures("one_thread_and_quickly_compiled")


GRAPHS = [
    *(f"nano {bits}" for bits in (2, 3, 4, 5, 8)),
    "cifar 3",
    "resnet-nano 2",
    "resnet-cifar 3",
    "pooled",
    "odd codes",
    "mixed",
]


def written(graph, folder):
    FORMAT.write(graph, folder)
    return folder


def run(*command, **options):
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=300, **options)


def missing(tools):
    return [tool for tool in tools if shutil.which(tool) is None]


@pytest.mark.parametrize("name", GRAPHS)
def test_logits_are_those_of_the_simulator_on_every_backend(name, tmp_path):
    graph, folder = graph_of(name), written(graph_of(name), tmp_path)
    generator = torch.Generator().manual_seed(0)
    shape = (16, graph.channels, graph.resolution, graph.resolution)
    pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    network = load_compiled(folder, 2)
    assert torch.equal(network(pixels), run_integer(graph, pixels.float()))
    assert network.classes == graph.classes and network(pixels[:0]).shape == (0, len(graph.classes))
    self_test(folder, "-O1 -DNETWORK_PORTABLE -Werror")
    self_test(folder, "-O1 -DNETWORK_PORTABLE -DNETWORK_INTEGER -Werror")
    if HAS_VNNI:  # else it was AVX2 already
        self_test(folder, "-O1 -march=native -DNETWORK_NO_VNNI -Werror")
    if HAS_AMX:  # else it was VNNI already
        self_test(folder, "-O1 -march=native -DNETWORK_NO_AMX -Werror")
    if name == "cifar 3":
        for fewer in ("", " -DNETWORK_NO_VNNI", " -DNETWORK_NO_AVX2"):  # all are compiled on every x86, and chosen
            self_test(folder, f"-O1 -Werror{fewer}")
            self_test(folder, f"-O1 -Werror{fewer}", "clang")
        self_test(folder, "-O3 -march=native")  # as users have it
        self_test(folder, "-O1 -march=native -Werror -fsanitize=address,undefined -fno-sanitize-recover=all")
        self_test(folder, "-O2 -march=native -Werror", "clang")


@pytest.mark.parametrize("name", ["cifar 3", "pooled", "mixed"])
def test_maps_larger_than_a_cache_are_computed_row_by_row(name, tmp_path, monkeypatch):
    monkeypatch.setattr("oncequant.export.stack.CACHED", 1)
    self_test(written(graph_of(name), tmp_path), "-O1 -Werror -fsanitize=address,undefined -fno-sanitize-recover=all")


def self_test(folder, flags, compiler="gcc"):
    """Compiles a network and runs its own test; without clang there is nothing to run."""
    if compiler == "gcc" or not missing([compiler]):
        found = run("make", "-f", "network.mk", "test", f"CC={compiler}", f"CFLAGS={flags}", cwd=folder)
        assert found.returncode == 0 and "20 of 20 pictures equal" in found.stdout, found.stderr[-2000:]


@pytest.mark.skipif(bool(missing_tools()), reason=f"needs {', '.join(missing_tools())}")
@pytest.mark.parametrize(
    "name, core",
    [*((name, "cortex-m4") for name in ("mixed", "nano 4", "resnet-nano 2", "pooled", "odd codes")),
     ("nano 4", "cortex-m7"), *((name, "cortex-m3") for name in ("nano 2", "mixed", "pooled"))],
)  # fmt: skip
def test_microcontrollers_compute_the_same_in_little_memory(name, core, tmp_path):
    graph, folder = graph_of(name), written(graph_of(name), tmp_path)
    found = emulate(folder, core)
    assert found.equal
    _, constants = sources(plan := program(graph), place(plan))
    assert 0 <= found.flash_bytes - constants < 16_000 and 100 < found.stack_bytes < 1_500
    macs = sum(
        step.weights.weight.numel() * (1 if step.op == "linear" else plan.maps[step.output].size ** 2)
        for step in plan.steps
        if step.weights
    )
    assert 1 < found.instructions / macs < (17 if core == "cortex-m3" else 10)  # the M3 has no floating-point unit


def test_whole_numbers_scale_as_float_does(tmp_path):
    folder = written(graph_of("mixed"), tmp_path)
    shutil.copy(Path(__file__).with_name("scales.c"), folder)
    flags = [
        "-O2",
        *STRICT,
        "-Wno-unused",
        "-DNETWORK_PORTABLE",
        "-DNETWORK_INTEGER",
        "-fsanitize=undefined",
        "-fno-sanitize-recover=all",
    ]
    assert run("gcc", *flags, "scales.c", "-o", "scales", cwd=folder).returncode == 0
    done = run("./scales", cwd=folder)
    found = done.stdout
    assert done.returncode == 0 and found.startswith("0 wrong") and float(found.split()[2]) > 0.5, (
        found
    )  # else float would do the work


def test_what_fails_under_emulation_is_said(tmp_path):
    if missing_tools():
        pytest.skip(f"needs {', '.join(missing_tools())}")
    folder = written(graph_of("nano 2"), tmp_path)
    (folder / "network.c").write_text("int variable = 1;")
    with pytest.raises(EmulationError, match="network.c has variables"):
        emulate(folder)


@pytest.mark.skipif(bool(missing(AARCH64)), reason=f"needs {', '.join(AARCH64)}")
@pytest.mark.parametrize("march", ["armv8.2-a+dotprod", "armv8-a"])
@pytest.mark.parametrize("name", ["nano 4", "pooled"])
def test_aarch64_computes_the_same(name, march, tmp_path):
    folder = written(graph_of(name), tmp_path)
    files = ["-O2", f"-march={march}", *STRICT, "-static", "network.c", "network_test.c", "-o", "test"]
    built = run(AARCH64[0], *files, cwd=folder)
    assert built.returncode == 0, built.stderr[-2000:]
    assert "20 of 20 pictures equal" in run(AARCH64[1], "-cpu", "max", "./test", cwd=folder).stdout


# -- memory


@pytest.mark.parametrize("seed", [0, 2, 4, 8, 9, 11, 12, 13, 14, 15])  # of others pictures hardly differ
def test_random_graphs_of_all_operations(seed, tmp_path):
    graph = random_graph(seed)
    logits = run_integer(graph, self_test_pictures(graph).float())
    assert len({tuple(row) for row in logits.tolist()}) >= 4  # pictures differ, so what is wrong shows
    folder = written(graph, tmp_path)
    backend = "-DNETWORK_PORTABLE" if seed % 2 else "-march=native"
    self_test(folder, f"-O1 {backend} -fsanitize=address,undefined -fno-sanitize-recover=all")


@pytest.mark.parametrize("seed", range(20))
def test_maps_that_live_together_do_not_overlap(seed):
    plan = program(random_graph(seed))
    placement, last = place(plan), {}
    for i, step in enumerate(plan.steps):
        last |= dict.fromkeys(step.inputs, i)
    alive, most = {}, 0
    for i, step in enumerate(plan.steps):
        dying = {name for name in step.inputs if last[name] == i}
        spans = {name: (at, at + plan.maps[name].bytes) for name, at in alive.items()}
        if step.output != "logits":
            start, size = placement.offsets[step.output], plan.maps[step.output].bytes
            in_place = [name for name in dying if placement.offsets.get(name) == start]
            assert not in_place or step.op in ("lookup", "add", "multiply")
            others = [span for name, span in spans.items() if name not in in_place]
            assert all(end <= start or start + size <= first for first, end in others)
            alive[step.output] = start
            most = max(most, start + size)
        scratch = placement.scratch[i], placement.scratch[i] + scratch_bytes(step, plan.maps)
        used = [(at, at + plan.maps[name].bytes) for name, at in alive.items()]
        used += [spans[name] for name in dying if name in spans]
        assert scratch[0] == scratch[1] or all(end <= scratch[0] or scratch[1] <= start for start, end in used)
        most = max(most, scratch[1])
        for name in dying:
            alive.pop(name, None)
    assert placement.bytes >= most and placement.bytes % 16 == 0


@pytest.mark.parametrize("bits", range(1, 9))
def test_words_hold_codes_at_their_own_bits(bits):
    rng = np.random.default_rng(bits)
    for channels, inputs in ((8, 288), (10, 27), (1, 5), (3, 64)):
        codes = rng.integers(0, 2**bits, (channels, inputs), dtype=np.uint8)
        words, at, steps = pack_words(codes, bits), 0, -(-inputs // 4)
        for first in range(0, channels, 8):
            block, low = codes[first : first + 8], 0
            for width in parts(bits):
                groups = -(-steps // (8 // width))
                part = words[at : at + groups * len(block)].reshape(groups, len(block))
                at += part.size
                for s in range(steps):
                    for j in range(4):
                        if 4 * s + j < inputs:
                            code = part[s * width // 8] >> (8 * j + s * width % 8) & (2**width - 1)
                            assert (code == block[:, 4 * s + j] >> low & (2**width - 1)).all()
                low += width
            assert low == bits
    assert pack_words(np.zeros((64, 576), np.uint8), bits).nbytes <= 64 * 576 * bits / 8 + 96
    assert padded_inputs(576, bits) == 576


# -- what goes wrong


def test_kernels_that_read_a_whole_map_read_one_pixel_of_many_channels():
    """Classifiers behind flattened maps, as many networks have them, of any size."""
    graph = random_graph(0)
    *before, quantized = [node for node in graph.nodes if node.op == "quantize"][:1]
    channels, size = graph.channels, graph.resolution
    generator = torch.Generator().manual_seed(0)
    weights = torch.randint(-8, 8, (10, channels, size, size), generator=generator).to(torch.int8)
    whole = Weights(weights, torch.zeros(10, dtype=torch.int32), torch.full((10,), 0.01), 4, padding=0)
    nodes = [node for node in graph.nodes if node.op in ("pixels", "normalise")]
    nodes += [
        quantized,
        Node("whole", "conv", (quantized.name,), weights=whole),
        Node("codes", "quantize", ("whole",), Grid(0.1, 128, 8)),
    ]
    last = Weights(torch.eye(10).to(torch.int8), torch.zeros(10, dtype=torch.int32), torch.ones(10), 8)
    nodes += [
        Node("flat", "flatten", ("codes",)),
        Node("again", "quantize", ("flat",), Grid(0.1, 128, 8)),
        Node("last", "linear", ("again",), weights=last),
    ]
    plan = program(replace(graph, nodes=tuple(nodes)))
    step = next(step for step in plan.steps if step.name == "whole")
    assert geometry(step, plan.maps) == (1, channels * size * size, 1, 0, 1)


def test_what_kernels_cannot_run_is_named():
    graph = random_graph(0)
    first = next(node for node in graph.nodes if node.op == "conv")
    in_float = replace(first, weights=replace(first.weights, weight=first.weights.weight.float(), bias=torch.zeros(1)))
    nodes = tuple(in_float if node is first else node for node in graph.nodes)
    with pytest.raises(CannotRun, match=f"{first.name} has weights or inputs in float"):
        program(replace(graph, nodes=nodes))
    shape, channels = dict(groups=1, padding=9, dilation=1), graph.channels
    wide = replace(first, weights=replace(first.weights, weight=torch.zeros(4, channels, 9, 9).to(torch.int8), **shape))
    nodes = tuple(wide if node is first else node for node in graph.nodes)
    with pytest.raises(CannotRun, match=f"{first.name}: no kernel for convolutions of 9 x 9 with padding 9"):
        program(replace(graph, nodes=nodes))


def test_a_compiled_network_says_what_it_takes(tmp_path):
    network = load_compiled(written(graph_of("nano 2"), tmp_path), 1)
    images, _ = digits(1)
    with pytest.raises(ValueError, match=r"shape \(N, \*\(1, 10, 10\)\) and type torch.uint8"):
        network(images)
    with pytest.raises(ValueError, match="torch.uint8"):
        network(torch.zeros(1, 1, 10, 10))
    (tmp_path / "network.h").write_text("/* another */\n")
    with pytest.raises(FileError, match="network.h was changed or damaged"):
        load_compiled(tmp_path)
    assert set(FILES) < set(FORMAT.files)


@pytest.mark.parametrize(
    "what, why",
    [
        ("zero point", "zero point of its grid"), ("gate", "maps of different shapes"), ("kernel", "weights of shape"),
        ("far apart", "too far apart"),
    ],
)  # fmt: skip
def test_what_kernels_would_compute_otherwise_is_refused(what, why):
    graph = random_graph(1)
    nodes, by_name = list(graph.nodes), graph.by_name()
    first = next(node for node in nodes if node.op == "conv")
    add = next(node for node in nodes if node.op == "add")
    changed = {
        "zero point": lambda: (by_name[first.inputs[0]], dict(grid=Grid(0.1, 300, 8))),
        "gate": lambda: (add, dict(inputs=(add.inputs[0], next(n.name for n in nodes if n.op == "quantize")))),
        "kernel": lambda: (first, dict(weights=replace(first.weights, weight=first.weights.weight[:, :, :1]))),
        "far apart": lambda: (by_name[add.inputs[0]], dict(grid=Grid(2.0**-40, 0, 8))),
    }
    if what == "kernel" and first.weights.weight.shape[-1] == 1:
        weight = first.weights.weight.expand(-1, -1, 1, 3).contiguous()
        changed["kernel"] = lambda: (first, dict(weights=replace(first.weights, weight=weight)))
    node, change = changed[what]()
    other = replace(graph, nodes=tuple(replace(n, **change) if n is node else n for n in nodes))
    assert why in FORMAT.refuses(other)


def test_a_quantizer_that_nobody_reads_is_left_out():
    graph = random_graph(2)
    first = next(node for node in graph.nodes if node.op == "quantize")
    nobodys = replace(first, name="nobody's")
    assert FORMAT.refuses(replace(graph, nodes=(*graph.nodes[:3], nobodys, *graph.nodes[3:]))) == ""


def test_class_names_of_all_kinds(tmp_path):
    names = ("café", 'a "quoted" one', "back\\slash", "??=", "50 %", "日本", "new\nline", "", "x" * 300, "1")
    graph = replace(graph_of("nano 2"), classes=names)
    assert load_compiled(written(graph, tmp_path), 1).classes == names
