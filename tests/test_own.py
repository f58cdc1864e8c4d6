"""Runs of networks of the user's own: from files and from Python; afterwards the folder is enough."""

import json
import shutil
from pathlib import Path

import numpy as np
import own_networks
import pytest
import torch
from commands import call, fails, model_of
from own_networks import Tiny
from safetensors.torch import save_file

import oncequant as oq
from oncequant.data import load_data
from oncequant.files import FileError, read_json
from oncequant.models import build_network, family_of
from oncequant.models.own_file import network_of_file
from oncequant.models.own_weights import FILE, start_from
from oncequant.models.trace import TraceError, own_network
from oncequant.supernet_file import load_supernet

FAST = ["--epochs", "1", "--float-epochs", "1", "--min-steps", "3", "--calibration-images", "32", "--max-train", "150"]
FAST += ["--resolutions", "8", "--precision", "float32"]
RNG = np.random.default_rng(0)
ROWS = [(RNG.integers(0, 128, (8, 8), dtype=np.uint8) + 12 * (i % 10), i % 10) for i in range(160)]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def file(tmp_path, monkeypatch):
    """The user's file, in the folder in which commands run."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(own_networks.__file__, tmp_path / "mine.py")
    return tmp_path / "mine.py"


def state(seed=5, classes=10):
    torch.manual_seed(seed)
    return Tiny(classes=classes).state_dict()


def of_run(folder, name):
    return json.loads((Path(folder) / name).read_text())


def test_qfa_searches_its_bits_and_the_folder_is_enough(file, monkeypatch, capsys):
    save_file(state(), "weights.safetensors")
    first = ["--network", "mine.py:tiny", "--weights", "weights.safetensors", "--run", "run", *FAST]
    call(monkeypatch, "run", "qfa", *first, "--searcher", "nsga2", "--evaluations", "6")
    assert "running tiny() of mine.py" in " ".join(capsys.readouterr().out.split())
    assert family_of(model_of(file.parent / "run")) == "own" and of_run("run", "run.json")["model"]["preset"] is None
    started = load_supernet(Path("run"), "float")
    assert not torch.equal(started.layer("stem.0").weight, state()["stem.0.weight"])  # it was trained
    members = of_run("run", "family.json")
    assert {len(member["arch"]) for member in members if member["stage"] == "mixed"} == {2 * 20}
    file.unlink()
    Path("weights.safetensors").unlink()
    call(monkeypatch, "train", "qfa", *first)
    assert "mine.py does not exist; run goes on with the network that it keeps" in " ".join(
        capsys.readouterr().out.split()
    )
    call(monkeypatch, "train", "qfa", *first[4:])
    call(monkeypatch, "search", "run", "--budget", "bitops<=2M", "--searcher", "random", "--evaluations", "6")
    call(monkeypatch, "export", "run", "mixed-bitops2M", "--formats", "onnx", "package", "c")
    (found,) = [one for one in of_run("run", "exports.json") if one["name"] == "mixed-bitops2M"]
    assert not found["problems"] and found["simulator_bit_equal_images"] == found["images"]
    assert found["c_different_images"] == 0
    capsys.readouterr()
    call(monkeypatch, "evaluate", "run", "mixed-bitops2M")
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["bitops"] <= 2e6
    call(monkeypatch, "info", "run")
    assert "qfa on digits, a network of your own" in capsys.readouterr().out
    call(monkeypatch, "report", "run")
    assert "blocks.0.deep.0" in Path("run/report/index.html").read_text()
    Path("archs.jsonl").write_text('{}\n{"stem.0.weight_bits": 4}\n')
    capsys.readouterr()
    call(monkeypatch, "cost", "archs.jsonl", "--run", "run", "--bits", "4", "--edge-bits", "8")
    whole, less = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert less["bitops"] < whole["bitops"] and less["macs"] == whole["macs"]


def test_oqat_lowers_it_by_inheritance(file, monkeypatch):
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state().items()}}, "weights.pth")
    own = ["--network", "mine.py:tiny", "--weights", "weights.pth", "--trained"]
    call(monkeypatch, "run", *own, "--bit-schedule", "8", "6", "4", "3", "2", "--run", "run", *FAST)
    given, net = state(), load_supernet(Path("run"), "float")
    assert torch.equal(net.layer("stem.0").weight, given["stem.0.weight"])  # as trained, without training
    assert torch.equal(net.layer("blocks.1.conv1.0").norm.running_var, given["blocks.1.conv1.1.running_var"])
    rows = of_run("run", "exports.json")
    assert [row["name"] for row in rows] == ["float-max", *(f"{bits}bit-L" for bits in (8, 6, 4, 3, 2))]
    assert not any(row["problems"] for row in rows)
    sizes = [row["ideal_bytes"] for row in rows]
    assert sizes == sorted(sizes, reverse=True)


def test_dnas_chooses_pairs_of_bits(file, monkeypatch):
    call(
        monkeypatch, "run", "dnas", "--network", "mine.py:tiny", "--run", "run", *FAST,
        "--samples", "2", "--jobs", "1", "--precisions", "204", "404", "808",
    )  # fmt: skip
    assert family_of(model_of(Path("run").resolve())) == "own_pairs"
    members = of_run("run", "family.json")
    assert {member["name"] for member in members} == {"float", "MA", "ME"}
    assert {"blocks.0.deep.0.precision"} <= members[-1]["arch"].keys()
    assert not any(row["problems"] for row in of_run("run", "exports.json"))


def test_a_run_from_python(tmp_path, monkeypatch, capsys):
    module = Tiny()
    config = oq.qfa.Config(epochs=1, float_epochs=1, min_steps=2, batch_size=32, calibration_images=32)
    mine = oq.own_network(module, torch.zeros(1, 1, 8, 8), trained=True)
    run = oq.new_run(config, (ROWS, None, None), tmp_path / "run", model=mine)
    assert run.model.trained and (tmp_path / "run" / FILE).exists()
    oq.train_run(config, run)
    oq.search_run(config, run, "bitops<=3M", searcher="random", evaluations=4)
    assert not any(export.problems for export in oq.export_run(config, run))
    again, opened = oq.open_run(tmp_path / "run", data=(ROWS, None, None))
    assert opened.model == run.model and again.bits == config.bits
    with torch.no_grad():
        module.stem[0].weight += 1
    with pytest.raises(FileError, match="weights .there '.*', now '"):
        mine = own_network(module, torch.zeros(1, 1, 8, 8), True)
        oq.new_run(config, (ROWS, None, None), tmp_path / "run", model=mine)
    with pytest.raises(ValueError, match="model: give what own_network returns, not a Tiny"):
        oq.new_run(config, (ROWS, None, None), tmp_path / "other", model=module)
    assert not (tmp_path / "other").exists()


def test_the_last_layer_starts_anew_for_other_classes(file, monkeypatch, capsys):
    save_file(state(classes=2), "two.safetensors")
    call(monkeypatch, "train", "--network", "mine.py:two_classes", "--bit-schedule", "8", "--run", "run", *FAST)
    assert "net.classifier starts anew, for 10 classes" in " ".join(capsys.readouterr().out.split())
    net = build_network(model_of(Path("run").resolve()))
    before = net.layer("net.classifier").weight.clone()
    start_from(net, Path("run"))
    assert torch.equal(net.layer("net.classifier").weight, before)
    capsys.readouterr()
    given = [
        "--network",
        "mine.py:tiny",
        "--weights",
        "two.safetensors",
        "--bit-schedule",
        "8",
        "--run",
        "other",
        *FAST,
    ]
    call(monkeypatch, "train", *given)
    assert "two.safetensors: 87 tensors are taken; classifier starts anew" in " ".join(capsys.readouterr().out.split())
    text = fails(monkeypatch, capsys, "train", *given, "--trained", *FAST)
    assert "two.safetensors: classifier.weight has shape (2, 16), the network's is (10, 16)" in text
    (Path("run") / FILE).unlink()
    with pytest.raises(FileError, match=FILE):
        start_from(net, Path("run"))


def test_weights_are_those_of_the_seed_where_none_are_given(file):
    first, second = (network_of_file(f"{file}:tiny", 8, seed=3) for _ in range(2))
    assert first.config == second.config
    assert network_of_file(f"{file}:tiny", 8, seed=4).config.weights != first.config.weights


@pytest.mark.parametrize(
    "words, text",
    [
        (["--network", "mine.py"], "write FILE.py:function"),
        (["--network", "mine:tiny"], "write FILE.py:function"),
        (["--network", "other.py:tiny"], "other.py does not exist"),
        (["--network", "mine.py:huge"], "mine.py has no function huge; it has "),
        (
            ["--network", "mine.py:with_gelu"],
            "1: gelu is not an operation that can be quantized; use ReLU,",
        ),
        (["--network", "mine.py:tiny_in_colour"], "the network takes images of 3 channels, these have 1"),
        (["--network", "broken.py:tiny"], "broken.py: tiny() failed: ZeroDivisionError"),
        (["--network", "mine.py:nothing"], "mine.py: nothing() returns a int; let it return a torch.nn.Module"),
        (
            ["--network", "mine.py:two_classes", "--trained"],
            "trained: net.classifier is for 2 classes, the images have",
        ),
        (["--network", "mine.py:tiny", "--weights", "none.pth"], "none.pth does not exist"),
        (["--network", "mine.py:tiny", "--weights", "empty.safetensors"], "empty.safetensors lacks stem.0.weight"),
        (
            ["--network", "mine.py:tiny", "--weights", "more.safetensors"],
            "more.safetensors has more, the network",
        ),
        (["--network", "mine.py:tiny", "--width", "0.5"], "width: a network of your own has its own; leave it out"),
        (["--network", "mine.py:tiny", "--depths", "2"], "depths: a network of your own has its own"),
        (["--network", "mine.py:tiny", "--se-bits", "32"], "se_bits is not an option of networks of your own"),
        (["--network", "mine.py:tiny", "--preset", "nano"], "preset: leave it out, the network is your own"),
        (["--weights", "empty.safetensors"], "weights and trained are for a network of your own: give --network"),
        (["--trained"], "weights and trained are for a network of your own"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(words, text, file, monkeypatch, capsys):
    with file.open("a") as more:
        more.write("\n\ndef nothing():\n    return 3\n")
    Path("broken.py").write_text("def tiny():\n    return 1 / 0\n")
    save_file({}, "empty.safetensors")
    save_file({**state(), "more": torch.zeros(1)}, "more.safetensors")
    assert text in fails(monkeypatch, capsys, "train", *words, "--run", "run", *FAST)
    assert not Path("run").exists()


def test_methods_have_their_own_refusals(file, monkeypatch, capsys):
    own = ["--network", "mine.py:tiny", "--run", "run", *FAST]
    assert "networks of your own do" in fails(monkeypatch, capsys, "train", "dnas", *own, "--precisions", "0", "404")
    assert "its own shortcuts" in fails(monkeypatch, capsys, "train", "dnas", *own, "--projections")
    save_file(state(), "w.safetensors")
    assert "starts from --weights" in fails(monkeypatch, capsys, "train", "dnas", *own, "--init", "w.safetensors")
    assert "cannot be timed" in fails(monkeypatch, capsys, "profile", "--network", "mine.py:tiny")
    assert not Path("run").exists()


def test_another_network_in_the_same_folder_is_refused(file, monkeypatch, capsys):
    call(monkeypatch, "train", "--network", "mine.py:tiny", "--bit-schedule", "8", "--run", "run", *FAST)
    file.write_text(file.read_text().replace("Inverted(8, nn.SiLU)", "Inverted(8, nn.Hardswish)"))
    again = ["train", "--network", "mine.py:tiny", "--bit-schedule", "8", "--run", "run", *FAST]
    text = fails(monkeypatch, capsys, *again)
    assert "holds a run with other settings: network" in text and len(text) < 1000
    assert "by another method" in fails(monkeypatch, capsys, "train", "dnas", "--run", "run", *FAST)
    assert read_json(Path("run/run.json"))["model"]["name"] == "own"


def test_networks_without_kernels_in_c_have_no_costs_there(file, monkeypatch, capsys):
    own = ["--network", "mine.py:widely_padded", "--run", "run", *FAST]
    text = fails(monkeypatch, capsys, "run", "qfa", *own, "--budget", "ram_bytes<=100k")
    assert "last: no kernel for convolutions of 3 x 3 with padding 3" in text and not Path("run").exists()
    call(monkeypatch, "run", "qfa", *own, "--searcher", "random", "--evaluations", "5")
    assert all(not {"ram_bytes", "flash_bytes"} & row["costs"].keys() for row in of_run("run", "family.json"))
    assert not any(row["problems"] for row in of_run("run", "exports.json"))
    capsys.readouterr()
    call(monkeypatch, "export", "run", "mixed-L", "--formats", "package", "c")
    said = " ".join(capsys.readouterr().out.split())
    assert "mixed-L is not written as c" in said and "no kernel for convolutions of 3 x 3 with padding 3" in said


@pytest.mark.compiler
@pytest.mark.parametrize("name", ["dense", "first_network", "all_convolutions"])
def test_a_network_of_ones_own_becomes_c(name, file, monkeypatch):
    own = ["--network", f"mine.py:{name}", "--run", "run", "--searcher", "random", "--evaluations", "5", *FAST]
    call(monkeypatch, "run", "qfa", *own, "--target", "cortex-m4", "--formats", "package", "c")
    rows = [row for row in of_run("run", "exports.json") if row["name"] != "float-max"]
    assert rows and not any(row["problems"] for row in rows)
    for row in rows:
        costs = next(entry["costs"] for entry in of_run("run", "family.json") if entry["name"] == row["name"])
        assert row["c_arena_bytes"] <= costs["ram_bytes"] and row["c_different_images"] == 0


def test_the_network_needs_images_of_its_channels():
    data = load_data((ROWS, None, None), size=8)
    with pytest.raises(TraceError, match="torch.export cannot trace"):
        own_network(Tiny(3), torch.zeros(1, data.channels, 8, 8))
