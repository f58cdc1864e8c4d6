"""`oncequant run`: one command leaves everything that a user needs."""

import json

import pytest
from commands import QUICK, SMALL, TRAINING, call, fails, image_folder
from PIL import Image

from oncequant.cost import COSTS
from oncequant.files import read_json, read_lines


def test_run_leaves_everything_a_user_needs(digits_run):
    info = read_json(digits_run / "run.json")
    assert info["command"].startswith("oncequant run") and info["data"]["name"] == "digits" and info["device"]
    assert {"float.safetensors", "4bit.safetensors", "2bit.safetensors"} <= {p.name for p in digits_run.iterdir()}
    family = read_json(digits_run / "family.json")
    assert {entry["stage"] for entry in family} == {"float", "4bit", "2bit"}
    assert all(0 <= e["top1_test"] <= 1 and set(e["costs"]) >= set(COSTS) for e in family)
    rows = read_json(digits_run / "exports.json")
    assert {row["name"] for row in rows} == {entry["name"] for entry in family}
    for row in rows:
        folder = digits_run / row["folder"]
        assert row["problems"] == [] and (folder / "model.onnx").stat().st_size == row["onnx_bytes"]
        if row["low_bit_bytes"]:
            assert row["low_bit_bytes"] <= 1.10 * row["low_bit_ideal_bytes"]
    assert "digits" in (digits_run / "report" / "index.html").read_text()
    assert list(digits_run.glob("tensorboard/4bit/events*"))


QFA = ["--max-train", "200", "--resolutions", "8", "10", *TRAINING[:-3], "--mixed-subnets", "1", "--evaluations", "32"]
QFA += ["--population", "40", "--generations", "10", "--front-members", "4"]


@pytest.fixture(scope="module")
def qfa_run(tmp_path_factory):
    """`oncequant run qfa` on digits, small and short."""
    folder = tmp_path_factory.mktemp("digits") / "qfa"
    with pytest.MonkeyPatch.context() as patch:
        call(patch, "run", "qfa", "--run", folder, *QFA, *SMALL)
    return folder


def test_run_of_mixed_precision_leaves_everything_a_user_needs(qfa_run):
    assert read_json(qfa_run / "run.json")["method"] == "qfa"
    family = read_json(qfa_run / "family.json")
    mixed = [entry for entry in family if entry["stage"] == "mixed"]
    sample = [row["arch"] for row in read_lines(qfa_run / "measurements.jsonl") if row["searcher"] == "sample"]
    assert mixed and all("top1_before_folding" in entry for entry in mixed)
    assert all(("top1_predicted" in entry) == (entry["arch"] not in sample) for entry in mixed)
    rows = read_json(qfa_run / "exports.json")
    assert {row["name"] for row in rows} == {entry["name"] for entry in family}
    assert all(row["problems"] == [] for row in rows)
    found = read_json(qfa_run / "predictor.json")
    assert -1 <= found["kendall_tau"] <= 1 and found["points"] and set(found["hypervolume"]) == {"predicted", "uniform"}
    page = (qfa_run / "report" / "index.html").read_text()
    data = json.loads(page.split("const DATA = ")[1].split(";</script>")[0])
    assert {row["role"] for row in data["bits_by_role"]} <= {"conv", "shortcut"}  # test_report.py says which
    assert all(sum(row["shares"].values()) == pytest.approx(1) for row in data["bits_by_role"])
    assert data["predictions"]["pairs"] == found["pairs"] and set(data["pictures"]) == {"predictor"}
    for picture in ("bits.png", "predictor.png", "pareto.png", "training.png"):
        assert (qfa_run / "report" / picture).stat().st_size > 5000


def test_budgets_of_mixed_precision_are_answered_from_the_predictor(qfa_run, monkeypatch, capsys):
    before = len(read_lines(qfa_run / "measurements.jsonl"))
    largest = max(e["costs"]["bitops"] for e in read_json(qfa_run / "family.json") if e["stage"] == "mixed")
    call(monkeypatch, "search", qfa_run, "--budget", f"bitops<={largest * 0.8:.0f}")
    assert 0 < len(read_lines(qfa_run / "measurements.jsonl")) - before <= 8
    name = read_json(qfa_run / "family.json")[-1]["name"]
    capsys.readouterr()
    call(monkeypatch, "evaluate", qfa_run, name)
    assert json.loads(capsys.readouterr().out)["bitops"] <= largest * 0.8
    call(monkeypatch, "export", qfa_run, name)
    assert read_json(qfa_run / "exports.json")[-1]["problems"] == []
    call(monkeypatch, "info", qfa_run)
    assert "float, mixed-float, mixed" in capsys.readouterr().out
    message = fails(monkeypatch, capsys, "search", qfa_run, "--budget", "bitops<=100")
    assert "smallest bitops" in message


@pytest.mark.parametrize("mode, size", [("RGB", (24, 50)), ("L", 12)])
def test_run_works_on_a_folder_of_two_classes_and_forty_images(tmp_path, monkeypatch, capsys, mode, size):
    source = image_folder(tmp_path / "my images", 2, 20, size, mode)
    if mode == "RGB":  # kept as people keep them
        nested = source / "class0" / "fr\u00fchere Bilder"
        nested.mkdir()
        for i, name in enumerate(("a b.JPG", "\u00e4.jpeg", "c.PNG", "d.gif", "e.webp")):
            kinds = {"c.PNG": "RGBA", "d.gif": "P"}
            Image.open(source / "class0" / f"{i}.png").convert(kinds.get(name, "RGB")).save(nested / name)
            (source / "class0" / f"{i}.png").unlink()
    call(monkeypatch, "run", "--data", source, "--run", tmp_path / "run", *QUICK, *SMALL)
    info = read_json(tmp_path / "run" / "run.json")
    assert info["data"]["channels"] == (1 if mode == "L" else 3)
    assert info["model"]["preset"] == ("resnet-nano" if mode == "L" else "resnet-cifar")
    stages = [entry["stage"] for entry in read_json(tmp_path / "run" / "family.json") if entry["stage"] != "float"]
    is_short = any(stages.count(stage) < 3 for stage in stages)
    assert ("fewer than three networks on a front" in capsys.readouterr().out) == is_short
    assert all(row["problems"] == [] for row in read_json(tmp_path / "run" / "exports.json"))
