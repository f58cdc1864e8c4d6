"""Costs from a device's table: reading, looking up, what is said of a layer that is not there, searching, DNAS."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from oncequant.arch import SKIP, LayerSpec
from oncequant.cost import COSTS, Budget, expected_cost, layer_macs
from oncequant.cost_table import KEY, TableError, check_layers, keep_table, layer_rows, run_costs, table_cost
from oncequant.files import FileError
from oncequant.models import build_network, space_of
from oncequant.models.mobilenet_v3 import PRESETS
from oncequant.models.resnet import PRESETS as RESNETS
from oncequant.search import SEARCHERS
from oncequant.search.budget import cost_batch

MIXED = space_of(replace(PRESETS["nano"], depths=(1, 2), weight_bits=(2, 4), act_bits=(2, 4), edge_bits=8))
RESIDUAL = space_of(replace(RESNETS["resnet20"], stage_blocks=(1, 1, 1), precisions=(SKIP, 104, 408)))


def microseconds(row):
    """Of a made-up device: MACs count less at low bits, and every layer has an overhead; not bilinear."""
    macs = row["kernel_size"] ** 2 * row["in_channels"] * row["out_channels"] * row["in_size"] ** 2 / row["groups"]
    return 3 + macs / 1000 * max(row["weight_bits"], row["act_bits"]) ** 0.5


def write_table(path, rows, unit="us"):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*KEY, unit])
        writer.writeheader()
        writer.writerows({**row, unit: repr(microseconds(row))} for row in rows)
    return path


ROWS = layer_rows(MIXED)


@pytest.fixture
def table(tmp_path):
    return write_table(tmp_path / "phone.csv", ROWS)


def by_hand(specs):
    return sum(microseconds({name: getattr(spec, name) for name in KEY}) for spec in specs.values() if spec.present)


def test_a_network_costs_what_its_layers_cost(table):
    cost = table_cost(table)
    assert (cost.name, cost.unit, cost.title) == ("phone", "us", "phone (us)")
    assert not cost.monotone and not cost.bilinear and cost.additive and cost.partial
    codes = MIXED.sample_codes(np.random.default_rng(0), 50)
    batch = cost_batch(MIXED, cost, codes)
    one_by_one = [MIXED.layers(MIXED.decode(row)) for row in codes]
    assert batch.tolist() == [cost(specs) for specs in one_by_one]
    assert batch == pytest.approx([by_hand(specs) for specs in one_by_one])


def test_the_rows_of_a_space_are_all_its_layers_and_no_others():
    def layers_of(specs):
        return {tuple(getattr(spec, name) for name in KEY) for spec in specs.values() if spec.present}

    rows = {tuple(row.values()) for row in ROWS}
    rng, seen = np.random.default_rng(1), set()
    for _ in range(1500):
        seen |= layers_of(MIXED.layers(MIXED.sample(rng)))
    assert seen <= rows and len(seen) > 0.9 * len(rows)
    every = (RESIDUAL.decode(np.array(codes)) for codes in np.ndindex(*RESIDUAL.cardinalities))
    assert {tuple(row.values()) for row in layer_rows(RESIDUAL)} == set().union(
        *(layers_of(RESIDUAL.layers(a)) for a in every)
    )


def test_json_holds_the_same(table, tmp_path):
    rows = [{**row, "cost": microseconds(row)} for row in ROWS]
    (tmp_path / "board.json").write_text(json.dumps({"unit": "us", "label": "Latency on a board", "layers": rows}))
    cost, specs = table_cost(tmp_path / "board.json"), MIXED.layers(MIXED.largest())
    assert cost.title == "Latency on a board (us)" and cost(specs) == table_cost(table)(specs)


# -- what is wrong


def test_a_missing_layer_is_named_with_the_nearest_before_any_work(tmp_path):
    rows = ROWS
    gone = next(row for row in rows if row["role"] == "expand" and row["weight_bits"] == 4)
    cost = table_cost(write_table(tmp_path / "phone.csv", [row for row in rows if row != gone]))
    said = rf"phone\.csv lacks a layer: stage\S+, expand {gone['in_channels']} > {gone['out_channels']}, kernel 1, "
    said += rf"stride 1, .*W4 A{gone['act_bits']}\. The nearest that it has: expand .*; .*; "
    with pytest.raises(TableError, match=said):
        check_layers(MIXED, cost)

    def measure(archs):
        raise AssertionError("measured")

    for search in SEARCHERS.values():
        for options in ({"budgets": [Budget(cost, 1e12)]}, {"budgets": (), "cost": cost}):
            with pytest.raises(TableError, match="lacks a layer"):
                search(MIXED, measure, evaluations=3, seed=0, **options)
    check_layers(MIXED, COSTS["macs"])  # nothing to know


GOOD = "role,in_channels,out_channels,kernel_size,stride,in_size,groups,weight_bits,act_bits,us\n"


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("macs.csv", GOOD, "is none of macs, params"),
        ("my phone.csv", GOOD, "letters, digits and underscores"),
        ("a.csv", GOOD, "has no layers"),
        ("a.csv", GOOD.replace("stride,", ""), "its header is role, in_channels"),
        ("a.csv", GOOD.replace("us", "us,mJ"), "and the unit of costs"),
        ("a.csv", GOOD + "stem,3,16,3,1,32,1,8,8,-1\n", "line 2: the cost is -1.0; use a number above 0"),
        ("a.csv", GOOD + "stem,3,16,3,1,32,1,8,8,nan\n", "use a number above 0"),
        ("a.csv", GOOD + "stem,3,16,3,1,32,1,8,x,1\n", "line 2: not a layer"),
        ("a.csv", GOOD + "stem,3,16\n", "line 2: not a layer"),
        ("a.csv", "# a board\n\n" + GOOD + "# 3x3\nstem,3,16,3,1,32,1,8,8,0\n", "line 5: the cost is 0.0"),
        ("a.txt", GOOD, "ends with .csv or .json"),
        (
            "a.csv",
            GOOD + 2 * "stem,3,16,3,1,32,1,8,8,1\n" + "stem,3,16,3,1,32,1,8,8,2\n",
            "line 4: stem 3 > 16, .* another",
        ),
        ("a.json", "[]", "should hold a JSON object"),
        ("a.json", '{"unit": "us"}', "lacks 'layers'"),
        ("a.json", '{"unit": "us", "layers": [7]}', "layer 1: not a layer"),
        ("a.json", '{"unit": "us", "layers": 7}', "layers should be a list"),
    ],
)
def test_files_that_are_no_tables(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(FileError, match=said):
        table_cost(tmp_path / name)


def test_a_missing_file_is_named(tmp_path):
    for name in ("a.csv", "a.json"):
        with pytest.raises(FileError, match=name):
            table_cost(tmp_path / name)


# -- what it is for


@pytest.mark.parametrize("name", SEARCHERS)
def test_searchers_keep_budgets_of_a_table(name, table):
    cost = table_cost(table)
    budget = Budget.parse("phone<=1.2k", {**COSTS, "phone": cost})
    found = SEARCHERS[name](
        MIXED, lambda archs: [0.5 for _ in archs], budgets=[budget], cost=cost, evaluations=8, seed=0
    )
    assert len(found) == 8 and all(budget.holds(MIXED.layers(trial.arch)) for trial in found)


def test_dnas_averages_the_costs_of_candidates(tmp_path):
    cost = table_cost(write_table(tmp_path / "phone.csv", layer_rows(RESIDUAL)))
    net = build_network(replace(RESNETS["resnet20"], stage_blocks=(1, 1, 1), precisions=(SKIP, 104, 408)))
    shares = {name: torch.full((3,), 1 / 3, dtype=torch.float64) for name in net.candidates if name.startswith("stage")}
    every = [cost(RESIDUAL.layers(RESIDUAL.decode(np.array(codes)))) for codes in np.ndindex(*RESIDUAL.cardinalities)]
    assert float(expected_cost(cost, net.candidates, shares)) == pytest.approx(np.mean(every))


def test_tables_are_kept_in_the_run_folder(table, tmp_path):
    run = tmp_path / "run"
    assert run_costs(run) == COSTS
    keep_table(table, run)
    keep_table(table, run)  # the same again
    specs = MIXED.layers(MIXED.smallest())
    assert list(run_costs(run)) == [*COSTS, "phone"] and run_costs(run)["phone"](specs) == table_cost(table)(specs)
    write_table(table, ROWS[:5])
    with pytest.raises(FileError, match="is another table"):
        keep_table(table, run)


def test_absent_layers_cost_nothing(table):
    absent = LayerSpec("unheard of", 1, 1, present=0)
    assert table_cost(table)({"a": absent}) == 0 and layer_macs(absent) == 0
    batch = table_cost(table)({"a": replace(absent, present=np.array([0, 0]))})
    assert batch.tolist() == [0, 0]
