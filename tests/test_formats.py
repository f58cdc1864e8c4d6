"""The contract of `Format`, for every entry of `FORMATS`; verification of whole exports, all formats and some."""

import json
import re
from collections import Counter
from dataclasses import asdict, dataclass, is_dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from small_export import digits, initialise, lowered, preprocessing, preset, subnet_of
from test_report import data_in, make_run_folder
from torch.nn import functional as F

from oncequant.export.format import Common, Exported, Format, text
from oncequant.export.formats import (
    DEFAULT_FORMATS,
    FORMATS,
    check_tools,
    exports_table,
    needed_packages,
    tables_by_format,
)
from oncequant.export.package import DeployedNetwork, load_package
from oncequant.export.simulate import float_parameters, run_float
from oncequant.export.verify import VerificationError, export_network, verify
from oncequant.files import FileError, read_json, write_json
from oncequant.measure import calibrate
from oncequant.models import build_network, space_of
from oncequant.report import write_report

GRAPHS = {  # presets of small_export, with bits
    "2 bits": ("nano", 2),
    "4 bits": ("nano", 4),
    "mixed with float": ("nano", (2, 4, 32)),
    "float": ("nano", 32),
    "cifar": ("cifar", 3),
    "8 bits": ("nano", 8),
}
REFUSED = {("c", "mixed with float"), ("c", "float")}


pytestmark = pytest.mark.usefixtures("one_thread_and_quickly_compiled")


@cache
def network(name):
    """(subnet, graph, the same in float) of a graph to export."""
    kind, bits = GRAPHS[name]
    subnet, arch = subnet_of(preset(kind, bits), seed=1, resolution=20 if kind == "cifar" else 12)
    images, _ = digits(subnet.config.image_channels)
    plain = lowered(subnet, arch, as_float=True)
    return subnet, lowered(subnet, arch), plain, images


def judged(name, format_name, folder, graph=None):
    """Verification of one format's files in a folder, as those of `graph` or of the named network."""
    subnet, written, plain, images = network(name)
    _, labels = digits(1)
    exported = Exported(graph or written, plain, folder)
    return verify(
        subnet, exported, [(images[100:130], labels[100:130]), (images[130:150], labels[130:150])], [format_name]
    )


# -- the contract


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("name", FORMATS)
def test_what_is_written_is_judged_without_problems(name, graph, tmp_path):
    one = FORMATS[name]
    why = one.refuses(network(graph)[1])
    assert bool(why) == ((name, graph) in REFUSED)
    if why:
        with pytest.raises(ValueError, match=re.escape(why)):
            one.write(network(graph)[1], tmp_path / "export")
        assert "float" in why and not (tmp_path / "export").exists()
        return
    one.write(network(graph)[1], tmp_path / "export")
    assert {path.name for path in (tmp_path / "export").iterdir()} == set(one.files)
    found = judged(graph, name, tmp_path / "export")
    judgement = found.judgements[name]
    assert found.problems == judgement.problems == ()
    assert judgement.bytes == sum((tmp_path / "export" / file).stat().st_size for file in one.files)
    assert 0 <= judgement.top1 <= 1 and found.common.images == 50
    assert is_dataclass(judgement) and set(asdict(judgement)) == {*one.keys, "problems"}
    flat = json.loads(json.dumps(found.flat()))
    assert set(flat) == {*asdict(found.common), *one.keys.values()}
    table = exports_table([flat])
    assert set(one.columns) <= set(table.columns) and all(texts.strip() for texts in table.texts[0])


@pytest.mark.parametrize("name", FORMATS)
def test_writing_replaces_and_is_repeatable(name, tmp_path):
    one, graph = FORMATS[name], network("4 bits")[1]
    for _ in range(2):
        for file in one.files:
            (tmp_path / file).write_bytes(b"old")
        one.write(graph, tmp_path)
        contents = [(tmp_path / file).read_bytes() for file in one.files]
    one.write(graph, tmp_path)
    assert contents == [(tmp_path / file).read_bytes() for file in one.files]


@pytest.mark.parametrize("name", [name for name, one in FORMATS.items() if one.packed])
def test_low_bit_weights_are_packed(name, tmp_path):
    one = FORMATS[name]
    sizes = {}
    for graph in ("2 bits", "8 bits"):
        one.write(network(graph)[1], tmp_path / graph)
        sizes[graph] = judged(graph, name, tmp_path / graph)
    two, eight = (sizes[graph].judgements[name].bytes for graph in ("2 bits", "8 bits"))
    saved = sizes["8 bits"].common.ideal_bytes - sizes["2 bits"].common.ideal_bytes
    assert eight - two > 0.5 * saved


@pytest.mark.parametrize("name", FORMATS)
def test_files_of_another_network_are_found(name, tmp_path):
    """The same architecture; the last layer has other weights."""
    graph = network("4 bits")[1]
    last = graph.nodes[-1]
    other = replace(last, weights=replace(last.weights, weight=last.weights.weight.flip(0)))
    FORMATS[name].write(replace(graph, nodes=(*graph.nodes[:-1], other)), tmp_path)
    assert judged("4 bits", name, tmp_path).problems


@pytest.mark.parametrize("name, file", [(name, file) for name, one in FORMATS.items() for file in one.files])
@pytest.mark.parametrize("damage", ["cut off", "empty", "missing", "something else"])
def test_damaged_files_are_named(name, file, damage, tmp_path):
    FORMATS[name].write(network("4 bits")[1], tmp_path)
    path = tmp_path / file
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"cut off": content[: len(content) // 2], "empty": b"", "something else": b"text\n"}[damage])
    with pytest.raises(FileError, match=file):
        judged("4 bits", name, tmp_path)


def test_formats_do_not_share_files_or_keys():
    files = [file for one in FORMATS.values() for file in one.files]
    keys = [*Common.__dataclass_fields__, "problems", *(key for one in FORMATS.values() for key in one.keys.values())]
    titles = [title for one in FORMATS.values() for title in (*one.columns, *one.time_columns)]
    for names in (files, keys, titles):
        assert len(set(names)) == len(names)
    assert all(
        name == one.name and set(one.brief) <= {*one.columns, *one.time_columns} for name, one in FORMATS.items()
    )
    assert all({"bytes", "top1"} <= set(one.keys) for one in FORMATS.values())
    assert needed_packages(FORMATS) == ["onnx", "onnxruntime", "qonnx"] and needed_packages(["package"]) == []


def test_tables_have_the_formats_that_were_written_and_take_old_rows():
    rows = [{"top1_plain": 0.5, "package_bytes": 12300, "ideal_bytes": 10000.0}, {}]
    assert exports_table(rows).columns == ["Trained top-1", "Ideal kB", "Package kB", "Package / ideal"]
    assert exports_table(rows).texts == [["50.00%", "10.0", "12.3", "1.23×"], ["–"] * 4]
    every = exports_table([dict.fromkeys(key for one in FORMATS.values() for key in one.keys.values())])
    assert set(every.texts[0]) == {"–", "not checked"}
    assert set(exports_table(rows, brief=True).columns) < set(every.columns)


def test_tables_by_format_have_every_column_but_those_of_times_once():
    rows = [dict.fromkeys(key for one in FORMATS.values() for key in one.keys.values())]
    tables = tables_by_format(rows)
    assert list(tables) == ["", *(name for name in FORMATS if name not in DEFAULT_FORMATS)]
    columns = [column for table in tables.values() for column in table.columns]
    assert sorted(columns) == sorted(exports_table(rows, part="rest").columns)
    assert "Cortex-M4" in tables["c"].notes and "Cortex-M4" not in tables[""].notes and "Ideal" in tables[""].notes
    assert list(tables_by_format([{"package_bytes": 12300, "ideal_bytes": 10000.0}])) == [""]


# -- whole exports


def trained(steps=90):
    """A 4-bit nano subnet that tells digits apart; (subnet, arch)."""
    config = preset("nano", 4)
    space = space_of(config)
    arch = space.smallest()
    images, labels = digits(1)
    torch.manual_seed(0)
    net = build_network(config, space.restrict(arch))
    initialise(net, arch, images[:100])
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for step in range(steps):
        rows = torch.arange(step * 32, step * 32 + 32) % 300
        optimizer.zero_grad()
        F.cross_entropy(net(images[rows], arch), labels[rows]).backward()
        optimizer.step()
    calibrate(net, arch, [(images[:300], None)])
    return net, arch


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    net, arch = trained()
    images, labels = digits(1)
    batches = [(images[300:350], labels[300:350]), (images[350:], labels[350:])]
    calibration = [(images[:300], None)]
    result = export_network(net, arch, *preprocessing(1), calibration, iter(batches), folder, FORMATS)
    return folder, net, arch, result


def test_a_trained_network_is_exported_and_verified(exported):
    folder, _, _, result = exported
    files = [file for one in FORMATS.values() for file in one.files]
    assert {path.name for path in folder.iterdir()} == {*files, "verification.json", "times.json"}
    written = json.loads((folder / "verification.json").read_text())
    onnx, common = result.judgements["onnx"], result.common
    assert written["top1_deployed"] == onnx.top1 and written["problems"] == []
    assert common.images == 100 and common.top1_plain > 0.6
    assert abs(common.top1_plain - onnx.top1) <= 0.1  # of 100 images; CPUs train this network differently
    assert onnx.top1 == common.top1_simulated and onnx.simulator_bit_equal_images == 100
    assert onnx.argmax_differences == onnx.near_tie_differences
    assert common.low_bit_bytes <= 1.1 * common.low_bit_ideal_bytes
    assert onnx.float_layers == 0 and onnx.latency_ms > 0 and onnx.float_latency_ms > 0
    assert result.judgements["package"].top1 == pytest.approx(onnx.top1, abs=0.03)


def test_verification_says_in_which_ways_a_file_is_wrong(exported, tmp_path):
    _, net, arch, _ = exported
    graph = lowered(net, arch)
    images, labels = digits(1)
    last = graph.nodes[-1]
    broken = replace(last, weights=replace(last.weights, weight=last.weights.weight.flip(0)))
    for one in FORMATS.values():
        one.write(replace(graph, nodes=(*graph.nodes[:-1], broken)), tmp_path)
    subject = Exported(graph, lowered(net, arch, as_float=True), tmp_path)
    problems = verify(net, subject, [(images[:50], labels[:50])], FORMATS).problems
    assert len(problems) == 6 and "not explained by rounding" in problems[0]
    assert "the integer simulator answer differently" in problems[1]
    assert "less correctly than the trained network" in problems[2]
    assert problems[3] == "the package holds another network than the one that was written"
    assert problems[4] == "the compiled C and the integer simulator compute different logits on 50 of 50 images"
    assert "qonnx and the integer simulator compute different codes or logits on 50 of 50 images" in problems[5]


def test_a_package_that_computes_something_else_is_found(exported, tmp_path, monkeypatch):
    _, net, arch, _ = exported
    graph = lowered(net, arch)
    images, labels = digits(1)
    subject = Exported(graph, lowered(net, arch, as_float=True), tmp_path)
    FORMATS["package"].write(graph, tmp_path)
    run = DeployedNetwork.forward
    monkeypatch.setattr(DeployedNetwork, "forward", lambda self, pixels: run(self, pixels).flip(1))
    batches = [(images[:30], labels[:30]), (images[30:50], labels[30:50])]
    (problem,) = verify(net, subject, batches, ["package"]).problems
    assert "the package answers" in problem and "of 30 images otherwise than its graph" in problem


def test_a_failed_verification_raises_and_leaves_its_evidence(exported, tmp_path, monkeypatch):
    _, net, arch, result = exported
    images, labels = digits(1)
    onnx = replace(result.judgements["onnx"], problems=("wrong on 3 of 50 images",))
    wrong = replace(result, judgements={**result.judgements, "onnx": onnx})
    monkeypatch.setattr("oncequant.export.verify.verify", lambda *args: wrong)
    with pytest.raises(VerificationError, match="wrong on 3 of 50") as raised:
        export_network(net, arch, *preprocessing(1), [(images[:50], None)], [(images[:50], labels[:50])], tmp_path)
    assert raised.value.found is wrong
    assert json.loads((tmp_path / "verification.json").read_text())["problems"] == ["wrong on 3 of 50 images"]


def test_verification_needs_images(exported):
    folder, net, arch, _ = exported
    graph = lowered(net, arch)
    with pytest.raises(ValueError, match="no test images"):
        verify(net, Exported(graph, graph, folder), [])


@pytest.mark.parametrize("name", FORMATS)
def test_one_format_alone(name, exported, tmp_path):
    _, net, arch, every = exported
    images, labels = digits(1)
    test = [(images[300:], labels[300:])]
    found = export_network(net, arch, *preprocessing(1), [(images[:300], None)], test, tmp_path, [name])
    assert {path.name for path in tmp_path.iterdir()} == {*FORMATS[name].files, "verification.json", "times.json"}
    assert list(found.judgements) == [name] and found.common == every.common
    assert found.judgements[name].top1 == every.judgements[name].top1


def test_a_format_that_cannot_hold_a_network_is_left_out(exported, tmp_path, capsys):
    subnet, graph, _, images = network("float")
    _, labels = digits(1)
    (tmp_path / "network.c").write_text("of an export before")
    test = [(images[:20], labels[:20])]
    found = export_network(
        subnet, graph.arch, *preprocessing(1), [(images[:50], None)], test, tmp_path, ["package", "c"]
    )
    assert list(found.judgements) == ["package"] and not (tmp_path / "network.c").exists()
    assert f"{tmp_path.name} is not written as c: " in " ".join(capsys.readouterr().out.split())


def test_what_a_format_lacks_is_said_before_work(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    check_tools(DEFAULT_FORMATS)
    with pytest.raises(ValueError, match="format c: no C compiler: 'no-such-compiler'"):
        check_tools(FORMATS)


def test_a_loaded_package_is_the_graph(exported):
    folder, net, arch, _ = exported
    assert load_package(Path(folder)).graph.arch == arch == lowered(net, arch).arch


# -- one place


@dataclass(frozen=True)
class TextJudgement:
    bytes: int
    top1: float
    problems: tuple[str, ...] = ()


def toy_format():
    """Weights as text, read back and run by the float simulator."""

    def write(graph, folder):
        write_json(folder / "weights.txt", [n.weights.weight.tolist() for n in graph.nodes if n.weights])

    def read(exported):
        weights = read_json(exported.folder / "weights.txt")
        parameters = float_parameters(exported.graph)
        assert [list(w.shape) for w, _ in parameters.values()] == [list(torch.tensor(w).shape) for w in weights]
        return lambda batch: Counter(
            correct=int((run_float(exported.graph, batch.pixels, parameters).argmax(1) == batch.labels).sum())
        )

    def judge(exported, counts, common):
        return TextJudgement((exported.folder / "weights.txt").stat().st_size, counts["correct"] / common.images)

    keys = {"bytes": "text_bytes", "top1": "top1_text"}
    columns = {"Text top-1": lambda row: text(row.get("top1_text"), "{:.2%}".format)}
    return Format("text", ("weights.txt",), write, read, judge, keys, columns, notes="Text: only a toy.")


def test_a_new_format_is_everywhere_by_its_entry_alone(exported, tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS, "text", toy_format())
    _, net, arch, every = exported
    images, labels = digits(1)
    test = [(images[300:], labels[300:])]
    found = export_network(net, arch, *preprocessing(1), [(images[:300], None)], test, tmp_path, ["package", "text"])
    assert found.judgements["text"].top1 == every.judgements["package"].top1
    assert json.loads((tmp_path / "verification.json").read_text())["text_bytes"] > 0
    run = make_run_folder(tmp_path / "run", measurements=3)
    rows = json.loads((run / "exports.json").read_text())
    (run / "exports.json").write_text(json.dumps([row | found.flat() for row in rows]))
    shown = data_in(write_report(run))["exports"]["tables"][0]
    assert shown["columns"][-1] == "Text top-1" and shown["notes"].endswith("only a toy.")
    assert shown["texts"][0][-1] == f"{found.judgements['text'].top1:.2%}"
