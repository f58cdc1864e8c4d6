"""`oncequant profile`: a table of this machine with every layer of a space, whose sums are what networks take."""

from dataclasses import replace
from itertools import product

import pytest
from commands import call, fails

from oncequant.cost_table import KEY, check_layers, layer_rows, table_cost
from oncequant.every_bit import config_of_bits
from oncequant.export import profile as profiling
from oncequant.export import timing
from oncequant.export.profile import compiled, layer_call, profile, random_graph, random_supernet
from oncequant.export.timing import microseconds, network_visit
from oncequant.files import read_lines
from oncequant.models import space_of
from oncequant.models.elastic_resnet import PRESETS as RESIDUAL
from oncequant.models.mobilenet_v3 import PRESETS as MOBILE
from oncequant.models.resnet import ResNetConfig
from oncequant.settings import ModelOptions

SMALL = dict(depths=(1, 2), resolutions=(8, 10), edge_bits=8, weight_bits=(2, 4), act_bits=(2, 4), steps_per_bits=True)
SPACES = {
    "dense": replace(RESIDUAL["resnet-nano"], kernel_sizes=(3,), expand_ratios=(2, 4), **SMALL),
    "depthwise": replace(MOBILE["nano"], kernel_sizes=(3,), expand_ratios=(2, 3), se_bits=8, **SMALL),
    "pairs": ResNetConfig(
        stage_blocks=(1, 1), stage_widths=(8, 16), resolutions=(8,), precisions=(0, 204, 404), edge_bits=8
    ),
}
compiler = pytest.mark.compiler


@pytest.fixture(autouse=True)
def few_whole_networks(monkeypatch):
    monkeypatch.setattr(profiling, "WHOLE", 4)


@compiler
@pytest.mark.parametrize("name", SPACES)
def test_a_profile_has_every_layer_of_its_space(name, tmp_path):
    path = tmp_path / "latency_us.csv"
    found = profile(SPACES[name], path, rounds=2)
    space, cost = space_of(SPACES[name]), table_cost(path)
    assert (cost.name, cost.unit) == ("latency_us", "us") and found.rows == len(layer_rows(space))
    check_layers(space, cost)
    first, header = path.read_text().splitlines()[:2]
    assert first.startswith("# ") and "one thread; cc -std=c99" in first and header == ",".join([*KEY, "us"])
    assert [file.name for file in tmp_path.iterdir()] == ["latency_us.csv"]
    assert 0 < cost(space.layers(space.smallest())) < cost(space.layers(space.largest()))


@compiler
def test_the_sum_over_layers_is_about_what_a_network_takes(tmp_path):
    """benchmarks/profile.py has exact numbers; machines that run tests are busy."""
    config = SPACES["dense"]
    profile(config, tmp_path / "us.csv", rounds=15)
    supernet, cost = random_supernet(config), table_cost(tmp_path / "us.csv")
    archs = [supernet.space.smallest(), supernet.space.largest()]
    visits = [network_visit(compiled(random_graph(supernet, arch))) for arch in archs]
    for arch, taken in zip(archs, microseconds(visits, "", tmp_path / "rounds", rounds=15)):
        assert 0.5 < cost(supernet.space.layers(arch)) / taken < 2


@compiler
def test_a_killed_profile_goes_on(tmp_path, monkeypatch):
    path, unfinished = tmp_path / "us.csv", tmp_path / "us.csv.unfinished"
    append = timing.append_line

    def killed(where, row):
        append(where, row)
        if len(read_lines(where)) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(timing, "append_line", killed)
    with pytest.raises(KeyboardInterrupt):
        profile(SPACES["pairs"], path, rounds=5)
    assert len(read_lines(unfinished)) == 3 and not path.exists()
    seen = []
    monkeypatch.setattr(timing, "append_line", lambda where, row: seen.append(row))
    profile(SPACES["pairs"], path, rounds=5)
    assert len(seen) == 2 and table_cost(path) and not unfinished.exists()


def test_the_call_of_a_layer():
    call = layer_call(("depthwise", 16, 16, 5, 2, 11, 16, 3, 4))
    assert (call.op, call.bits, call.in_bits, call.out_size, call.out_channels) == ("depthwise", 3, 4, 6, 16)
    assert layer_call(("classifier", 16, 10, 1, 1, 1, 1, 8, 8)).op == "linear"


def test_bits_are_those_of_every_pair():
    bits = (4, 1)
    elastic = config_of_bits(ModelOptions("resnet-nano"), bits, 7, 3)
    assert (elastic.num_classes, elastic.image_channels, elastic.act_bits) == (7, 3, (4,))
    assert {(row["weight_bits"], row["act_bits"]) for row in layer_rows(space_of(elastic))} == {(4, 4), (1, 4), (8, 8)}
    pairs = config_of_bits(ModelOptions("resnet20"), (4, 2), None, None).precisions
    assert set(pairs) == {0, *(100 * w + a for w, a in product((4, 2), repeat=2))}


# -- the command


DIGITS = "--preset resnet-nano --resolutions 8 --depths 1 --expand-ratios 2 --kernel-sizes 3 --width 0.5".split()


@compiler
def test_command_line(tmp_path, monkeypatch, capsys):
    path = tmp_path / "board_us.csv"
    call(monkeypatch, "profile", *DIGITS, "--bits", "4", "--rounds", "2", "--out", path)
    assert "board_us.csv: 9 layers in us" in " ".join(capsys.readouterr().out.split())
    options = ModelOptions("resnet-nano", 0.5, resolutions=(8,), depths=(1,), kernel_sizes=(3,), expand_ratios=(2,))
    check_layers(space_of(config_of_bits(options, (4,), None, None)), table_cost(path))


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--bits", "4", "--edge-bits", "32"], "layers in float have no kernel in C: stem 1 > 16, kernel 3"),
        (["--bits", "32"], "layers in float have no kernel in C"),
        (["--bits", "1"], "inputs of one bit have no kernel in C"),
        (["--out", "macs.csv"], "is none of macs"),
        (["--out", "table.txt"], "ends with .csv or .json"),
        (["--out", "table.json"], "a profile is CSV"),
        (["--rounds", "0"], "--rounds 0: use 1 to 100,000"),
        (["--num-classes", "0"], "--num-classes 0: use 2 to 1,000,000"),
        (["--bits", "9"], "weight_bits [9]: use 1 to 8"),
        (["--preset", "resnet20", "--depths", "2"], "depths is not an option of resnet networks"),
    ],
)
def test_what_cannot_be_profiled_is_refused_in_one_line(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert said in fails(monkeypatch, capsys, "profile", *DIGITS[:2], *arguments)
    assert not list(tmp_path.iterdir())


def test_without_a_compiler_nothing_is_done(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.chdir(tmp_path)
    said = fails(monkeypatch, capsys, "profile", *DIGITS)
    assert "no C compiler: 'no-such-compiler' is not on the PATH" in said and not list(tmp_path.iterdir())
