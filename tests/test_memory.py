"""RAM and flash of networks in C before there are any: what is planned, and what a compiler makes, of random ones."""

import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from blank_graphs import blank_graph, mixed
from commands import TRAINING, call, fails
from small_export import lowered, preset, subnet_of

from oncequant.answers import Accuracy
from oncequant.arch import SKIP, Arch
from oncequant.cost import COSTS, Budget
from oncequant.export import cortex_m
from oncequant.export.c_writer import sources
from oncequant.export.cortex_m import CORES, FLAGS
from oncequant.export.program import place, program
from oncequant.family import with_bits
from oncequant.files import read_json
from oncequant.memory import constant_bytes, flash_bytes, packed_words, ram_bytes
from oncequant.models import PRESETS, space_of
from oncequant.search import SEARCHERS
from oncequant.search.budget import BudgetError, check_each, check_reachable
from oncequant.search.measurements import MeasurementFile, all_costs, with_costs
from oncequant.structure import CannotRun
from oncequant.targets import TARGETS, with_target

pytestmark = pytest.mark.usefixtures("one_thread_and_quickly_compiled")

SPACES = {
    "nano": mixed("nano"),
    "cifar": mixed("cifar", width=0.25),
    "imagenet": mixed("imagenet", width=0.1, num_classes=10, resolutions=(64, 96)),
    "resnet-nano": mixed("resnet-nano"),
    "resnet-cifar": mixed("resnet-cifar", width=0.5),
    "resnet-photo": mixed("resnet-photo", width=0.25),
    "resnet20": mixed("resnet20"),
    "resnet20 B": mixed("resnet20", projections=True),
    "resnet50": mixed("resnet50", stage_widths=(4, 8, 8, 16), resolutions=(64,), num_classes=10),
}
all_spaces = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)


def check(space, arch, rng):
    """Costs of an architecture are what is planned for a graph of it. Returns the files in C."""
    specs, plan = space.layers(arch), program(blank_graph(space, arch, rng))
    placement = place(plan)
    files, constants = sources(plan, placement)
    assert (ram_bytes(specs), constant_bytes(specs)) == (placement.bytes, constants), dict(arch)
    return files


@all_spaces
def test_the_arena_and_the_constants_are_exact(space):
    rng = np.random.default_rng(0)
    for arch in (space.smallest(), space.largest(), *(space.sample(rng) for _ in range(8))):
        check(space, arch, rng)


@pytest.mark.slow
@all_spaces
def test_the_arena_and_the_constants_are_exact_of_hundreds(space):
    rng = np.random.default_rng(1)
    for _ in range(150):
        check(space, space.sample(rng), rng)


@pytest.mark.skipif(shutil.which("arm-none-eabi-gcc") is None, reason="needs arm-none-eabi-gcc")
@all_spaces
def test_flash_is_bounded_closely(space, tmp_path):
    rng = np.random.default_rng(2)
    arch = space.sample(rng)
    for name, text in check(space, arch, rng).items():
        (tmp_path / name).write_text(text)
    command = ["arm-none-eabi-gcc", *FLAGS, *CORES["cortex-m4"].flags, "-c", "network.c", "-o", "network.o"]
    subprocess.run(command, cwd=tmp_path, check=True)
    printed = subprocess.run(["arm-none-eabi-size", "network.o"], cwd=tmp_path, check=True, capture_output=True)
    above = flash_bytes(space.layers(arch)) - int(printed.stdout.splitlines()[1].split()[0])
    assert 0 <= above < 1_500  # seen: 340 to 760


@pytest.mark.parametrize("bits", [2, 3, (2, 3, 8)])
def test_trained_networks_are_planned_alike(bits):
    """Through the whole of lowering. Untrained, some grids coincide, so there may be less."""
    for seed in range(2):
        config = preset("nano", bits) if seed else replace(PRESETS["resnet-nano"], edge_bits=8)
        config = config if seed or isinstance(bits, tuple) else with_bits(config, bits)
        if isinstance(bits, tuple):
            config = replace(config, weight_bits=bits, act_bits=bits, steps_per_bits=True)
        subnet, arch = subnet_of(config, seed, resolution=10)
        plan, specs = program(lowered(subnet, arch)), subnet.space.layers(arch)
        placement = place(plan)
        assert placement.bytes == ram_bytes(specs)
        assert 0 <= constant_bytes(specs) - sources(plan, placement)[1] <= 1024


@all_spaces
def test_vectors_are_exactly_one_by_one(space):
    codes = space.sample_codes(np.random.default_rng(3), 40)
    codes = np.concatenate([codes, codes[:3]])
    for cost in (ram_bytes, constant_bytes, flash_bytes):
        batch = cost(space.layers_batch(codes))
        assert batch.tolist() == [cost(space.layers(space.decode(row))) for row in codes]
    one = space.restrict(space.smallest())
    assert ram_bytes(one.layers_batch(np.zeros((3, 0), int))).tolist() == [ram_bytes(one.layers(one.smallest()))] * 3


def test_a_float_network_has_costs_too():
    spaces = [space_of(with_bits(replace(PRESETS["resnet-nano"], edge_bits=bits), bits)) for bits in (8, 32)]
    bytes_8, bytes_32 = (space.layers(space.largest()) for space in spaces)
    weights = sum(spec.weights for spec in bytes_32.values())
    assert constant_bytes(bytes_32) - constant_bytes(bytes_8) == pytest.approx(3 * weights, rel=0.02)
    assert 2.5 < ram_bytes(bytes_32) / ram_bytes(bytes_8) < 4
    with pytest.raises(CannotRun):
        subnet, arch = subnet_of(preset("nano", 32), resolution=8)
        program(lowered(subnet, arch))


def test_layers_without_operations_are_refused():
    space = SPACES["nano"]
    for name in ("ram_bytes", "flash_bytes"):
        with pytest.raises(ValueError, match="what space.layers returns"):
            COSTS[name](dict(space.layers(space.smallest())))
    values = space.decode_batch(space.sample_codes(np.random.default_rng(0), 5))
    with pytest.raises(ValueError, match="comes from SearchSpace.layers_batch"):
        ram_bytes(space.describe(values))


@pytest.mark.parametrize("bits", range(1, 9))
def test_words_are_counted(bits):
    from oncequant.export.packing import pack_words

    for channels, inputs in ((8, 288), (10, 27), (1, 5), (3, 64), (1, 1200)):
        words = len(pack_words(np.zeros((channels, inputs), np.uint8), bits))
        assert packed_words(channels, inputs, bits) == words == packed_words(channels, inputs, np.array([bits]))[0]


# -- searches


def test_budgets_below_what_was_found_are_refused():
    for space in (SPACES["resnet-cifar"], SPACES["resnet20"]):
        assert SKIP in space.choices.get("stage1.block1.precision", (SKIP,))
        with pytest.raises(BudgetError, match=r"the smallest ram_bytes that was found is \d"):
            check_reachable(space, [Budget(COSTS["ram_bytes"], 1000)])
    with pytest.raises(BudgetError, match=r"flash_bytes that was found"):
        check_each(SPACES["resnet20"], [Budget(COSTS["flash_bytes"], 1000)])
    check_each(SPACES["resnet20"], [Budget(COSTS["flash_bytes"], 100_000)])


@pytest.mark.parametrize("searcher", SEARCHERS)
def test_searches_keep_budgets_of_memory(searcher):
    space = SPACES["nano"]
    least = space.layers(space.smallest())
    budgets = [Budget(COSTS[name], 1.3 * COSTS[name](least)) for name in ("ram_bytes", "flash_bytes")]
    trials = SEARCHERS[searcher](
        space, lambda archs: [0.5] * len(archs), budgets=budgets, cost="ram_bytes", evaluations=6, seed=0
    )
    assert len(trials) == 6
    assert all(budget.holds(space.layers(trial.arch)) for trial in trials for budget in budgets)


def test_measurements_from_before_these_costs_go_on(tmp_path):
    space, path = SPACES["nano"], tmp_path / "measurements.jsonl"
    archs = [space.smallest(), space.largest()]
    list(MeasurementFile(path, "mixed").measured(space, lambda arch: Accuracy(0.5, 0.5), "random")(archs))
    (_, known) = MeasurementFile(path, "mixed").read()
    young = replace(known, costs={name: number for name, number in known.costs.items() if name != "ram_bytes"})
    other = replace(known, costs={**known.costs, "flash_bytes": 1.0})  # of other kernels
    right = all_costs(space, archs[1])
    for old in (young, other):
        assert with_costs(old, space, COSTS).costs == right
    path.write_text(path.read_text().replace(f'"ram_bytes": {right["ram_bytes"]}', '"ram_bytes": 7'))
    memory = MeasurementFile(path, "mixed", space)
    assert list(memory.measured(space, lambda arch: Accuracy(0.1, 0.1), "nsga2")(archs)) == [0.5, 0.5]
    assert memory.best_within("ram_bytes", 100) == 0 and memory.best_within("ram_bytes", 10**6) == 0.5


# -- targets


def test_targets_are_budgets_unless_others_are_given():
    names = [target.name for target in TARGETS]
    assert len(set(names)) == len(names) >= 8 and "cortex-m4" in names
    ram, flash = with_target((), "cortex-m4")
    assert (ram.limit, flash.limit) == (60 * 1024, 120 * 1024)
    assert all(Budget.parse(str(budget)) == budget for target in TARGETS for budget in target.budgets)
    own = Budget.parse("ram_bytes<=9k"), Budget.parse("bitops<=1M")
    assert with_target(own, "cortex-m4") == (*own, flash) and with_target(own, None) == own


def test_targets_on_the_command_line(tmp_path, monkeypatch, capsys):
    call(monkeypatch, "info", "--targets")
    printed = capsys.readouterr().out
    assert all(target.name in printed for target in TARGETS)
    words = "run", "--run", tmp_path / "run"
    assert "use one of cortex-m4, nano-33-ble" in fails(monkeypatch, capsys, *words, "--target", "toaster")
    photo = *words, "--preset", "cifar", "--width", "4", "--resolutions", "32", "--target", "stm32f103"
    assert "that was found is" in fails(monkeypatch, capsys, *photo) and not (tmp_path / "run").exists()


def test_networks_in_float_fit_no_board(tmp_path, monkeypatch, capsys):
    budgets = with_target((), "nano-33-ble")
    in_float = space_of(replace(PRESETS["resnet-nano"], weight_bits=(4,), act_bits=(4,), edge_bits=32))
    for check in (check_reachable, check_each):
        with pytest.raises(BudgetError, match="nano-33-ble: networks with a layer in float cannot run in C, and stem"):
            check(in_float, budgets)
    some = space_of(replace(PRESETS["resnet20"], precisions=(232, 404), edge_bits=8))
    arch, other = ({n: p if n.endswith("precision") else v[0] for n, v in some.choices.items()} for p in (232, 404))
    assert not any(budget.holds(some.layers(Arch(arch))) for budget in budgets)
    assert all(budget.holds(some.layers(Arch(other))) for budget in budgets)
    codes = np.stack([some.encode(arch), some.encode(other)])
    assert budgets[0].holds(some.layers_batch(codes)).tolist() == [False, True]
    check_each(some, budgets)
    words = "--run", tmp_path / "run", "--edge-bits", "32", "--target", "cortex-m4"
    assert "cannot run in C" in fails(monkeypatch, capsys, "run", *words) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("emulated", [True, False])
def test_a_run_for_a_target_fits_it(tmp_path, monkeypatch, emulated):
    """The board's RAM, and less flash than it has; also where the tools to compile for it are missing."""
    if not emulated:
        monkeypatch.setattr("oncequant.export.c.missing_tools", lambda: ["arm-none-eabi-gcc"])
    small = "--max-train", "200", "--preset", "resnet-nano", "--resolutions", "8", "10", *TRAINING
    folder, wanted = tmp_path / "run", ("--target", "stm32f103", "--budget", "flash_bytes<=28k")
    call(monkeypatch, "run", "--run", folder, *small, "--evaluations", "6", *wanted)
    chosen = [member for member in read_json(folder / "family.json") if member["bits"] != 32]
    assert chosen and all("flash_bytes28k-stm32f103" in member["name"] for member in chosen)
    call(monkeypatch, "export", folder, chosen[0]["name"], "--formats", "c")
    (row,) = (row for row in read_json(folder / "exports.json") if row["name"] == chosen[0]["name"])
    costs = chosen[0]["costs"]
    assert row["c_arena_bytes"] <= costs["ram_bytes"] <= 16 * 1024
    assert row["c_constant_bytes"] < costs["flash_bytes"] <= 28_000
    assert row.get("cortex_m4_flash_bytes", 0) <= costs["flash_bytes"]
    assert ("cortex_m4_flash_bytes" in row) == (emulated and not cortex_m.missing_tools())
    call(monkeypatch, "info", folder)
