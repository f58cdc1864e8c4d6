import csv
import errno
import fcntl
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from oncequant import cli, progress, run_folder
from oncequant.cost import COSTS, Budget, readable
from oncequant.files import read_json, read_lines, write_json
from oncequant.methods.baselines import uniform_archs
from oncequant.models.mobilenet_v3 import PRESETS, mobilenet_v3_space, with_bits
from oncequant.options import Info, Train
from oncequant.search import SearchConfig

QUICK = ["--epochs", "1", "--float-epochs", "1", "--min-steps", "6", "--evaluations", "6", "--random-subnets", "1"]
QUICK += ["--calibration-images", "64", "--bit-schedule", "4", "2"]
SMALL = ["--width", "0.5", "--depths", "1", "2", "--kernel-sizes", "3", "--expand-ratios", "2", "3"]


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["oncequant", *map(str, arguments)])
    cli.main()


def fails(monkeypatch, capsys, *arguments):
    """The one line of a refused command."""
    with pytest.raises(SystemExit) as stopped:
        call(monkeypatch, *arguments)
    assert stopped.value.code == 1
    return " ".join(capsys.readouterr().err.split())


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    """`oncequant run` on digits, small and short."""
    folder = tmp_path_factory.mktemp("digits") / "run"
    with pytest.MonkeyPatch.context() as patch:
        call(patch, "run", "--run", folder, "--max-train", "200", "--resolutions", "8", "10", *QUICK, *SMALL)
    return folder


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


QFA = ["--method", "qfa", "--max-train", "200", "--resolutions", "8", "10", *QUICK[:-3], "--qfa.mixed-subnets", "1"]


@pytest.fixture(scope="module")
def qfa_run(tmp_path_factory):
    """`oncequant run --method qfa` on digits, small and short."""
    folder = tmp_path_factory.mktemp("digits") / "qfa"
    with pytest.MonkeyPatch.context() as patch:
        call(patch, "run", "--run", folder, *QFA, *SMALL, "--evaluations", "32")
    return folder


def test_run_of_mixed_precision_leaves_everything_a_user_needs(qfa_run):
    assert read_json(qfa_run / "run.json")["method"] == "qfa"
    family = read_json(qfa_run / "family.json")
    mixed = [entry for entry in family if entry["stage"] == "mixed"]
    assert mixed and all({"top1_predicted", "top1_before_folding"} <= set(entry) for entry in mixed)
    rows = read_json(qfa_run / "exports.json")
    assert {row["name"] for row in rows} == {entry["name"] for entry in family}
    assert all(row["problems"] == [] for row in rows)
    found = read_json(qfa_run / "predictor.json")
    assert -1 <= found["kendall_tau"] <= 1 and found["points"] and set(found["hypervolume"]) == {"predicted", "uniform"}
    page = (qfa_run / "report" / "index.html").read_text()
    data = json.loads(page.split("const DATA = ")[1].split(";</script>")[0])
    assert {row["role"] for row in data["bits_by_role"]} >= {"depthwise", "project"}
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


def test_options_of_another_method_are_refused(tmp_path, monkeypatch, capsys):
    assert "--bit-schedule" in fails(
        monkeypatch, capsys, "train", "--run", tmp_path, "--method", "qfa", "--bit-schedule", "4"
    )
    assert "--qfa" in fails(monkeypatch, capsys, "train", "--run", tmp_path, "--qfa.bits", "2", "4")
    message = fails(monkeypatch, capsys, "train", "--run", tmp_path, "--method", "qfa", "--qfa.bits", "9")
    assert "bits" in message and "1 to 8" in message
    message = fails(monkeypatch, capsys, "train", "--run", tmp_path, "--method", "qfa", "--no-signed-activations")
    assert "--no-signed-activations" in message and "--qfa.activations lsq" in message
    assert "files hold 2 bits" in fails(
        monkeypatch, capsys, "run", "--run", tmp_path, "--method", "qfa", "--qfa.bits", "1"
    )


def test_every_command_that_changes_a_run_is_kept(digits_run, monkeypatch, capsys):
    call(monkeypatch, "search", digits_run, "--budget", "params<=100k", "--evaluations", "3")
    call(monkeypatch, "search", digits_run, "--budget", "params<=100k", "--evaluations", "3")
    call(monkeypatch, "evaluate", digits_run, "largest")
    kept = [record["command"] for record in read_lines(digits_run / "commands.jsonl")]
    assert kept[0] == read_json(digits_run / "run.json")["command"] and "evaluate" not in " ".join(kept)
    assert kept[-1].startswith("oncequant search") and "'params<=100k'" in kept[-1] and kept[-1] != kept[-2]
    capsys.readouterr()
    call(monkeypatch, "info", digits_run)
    assert kept[-1] in capsys.readouterr().out
    call(monkeypatch, "report", digits_run)
    page = (digits_run / "report" / "index.html").read_text()
    assert json.loads(page.split("const DATA = ")[1].split(";</script>")[0])["run"]["commands"] == kept


def test_a_run_of_an_older_version_keeps_its_first_command(digits_run, tmp_path, monkeypatch, capsys):
    shutil.copy(digits_run / "run.json", tmp_path)
    (tmp_path / "commands.jsonl").write_text('{"command": "oncequant export x", "date": "2026-11-22"}\n')
    call(monkeypatch, "info", tmp_path)
    lines = " ".join(capsys.readouterr().out.split())
    assert read_json(digits_run / "run.json")["command"] in lines and "then: oncequant export x" in lines


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("run.json", "[]", "should hold a JSON object"),
        ("run.json", '{"settings": {}}', "lacks 'data'"),
        ("run.json", '{"settings": [], "data": {}, "date": "", "device": "", "command": ""}', "settings"),
        ("family.json", "{}", "should hold a JSON list"),
        ("family.json", '[{"name": "4bit-S"}]', "record 1 lacks 'stage'"),
        ("family.json", "[1]", "record 1 lacks 'name'"),
    ],
)
def test_files_that_are_json_but_not_ours_are_named(digits_run, tmp_path, monkeypatch, capsys, name, content, says):
    for file in ("run.json", "family.json"):
        shutil.copy(digits_run / file, tmp_path)
    (tmp_path / name).write_text(content)
    message = fails(monkeypatch, capsys, "info", tmp_path)
    assert name in message and says in message


def test_the_same_command_again_changes_nothing(digits_run, monkeypatch):
    names = ["float.safetensors", "2bit.safetensors", "measurements.jsonl"]
    before = {name: (digits_run / name).read_bytes() for name in names}
    call(monkeypatch, "run", "--run", digits_run, "--max-train", "200", "--resolutions", "8", "10", *QUICK, *SMALL)
    assert before == {name: (digits_run / name).read_bytes() for name in before}


def test_another_command_in_the_same_folder_is_refused(digits_run, monkeypatch, capsys):
    message = fails(monkeypatch, capsys, "train", "--run", digits_run, "--max-train", "100", *SMALL)
    assert "other settings" in message and "max_train" in message


def test_only_options_that_differ_are_named_and_finished_stages_can_be_taken_over(
    digits_run, tmp_path, monkeypatch, capsys
):
    options = ["--max-train", "200", "--resolutions", "8", "10", *[w for w in QUICK if w != "--evaluations"][:6]]
    options += [
        "--random-subnets",
        "1",
        "--calibration-images",
        "64",
        "--bit-schedule",
        "4",
        "2",
        *SMALL,
        "--lr",
        "1e-3",
    ]
    message = fails(monkeypatch, capsys, "train", "--run", digits_run, *options)
    assert "lr (there 0.003, now 0.001)" in message and "epochs" not in message
    (tmp_path / "run").mkdir()
    shutil.copy(digits_run / "float.safetensors", tmp_path / "run")  # the advice after a loss that is not finite
    call(monkeypatch, "train", "--run", tmp_path / "run", *options)
    assert {row["stage"] for row in read_lines(tmp_path / "run" / "metrics.jsonl")} == {"4bit", "2bit"}


def test_search_under_budgets_keeps_them(digits_run, monkeypatch):
    space = mobilenet_v3_space(with_bits(_model(digits_run), 4))
    smallest = {name: cost(space.layers(space.smallest())) for name, cost in COSTS.items()}
    budgets = [f"bitops<={readable(1.5 * smallest['bitops'])}", f"params<={readable(1.3 * smallest['params'])}"]
    flags = [word for budget in budgets for word in ("--budget", budget)]
    call(monkeypatch, "search", digits_run, "--evaluations", "4", "--searcher", "random", *flags)
    chosen = [e for e in read_json(digits_run / "family.json") if "bitops" in e["name"]]
    assert {e["stage"] for e in chosen} == {"4bit", "2bit"}
    for entry in chosen:
        for budget in map(Budget.parse, budgets):
            assert entry["costs"][budget.cost] <= budget.limit


def test_bit_widths_too_large_for_a_budget_are_left_out(digits_run, monkeypatch, capsys):
    least = {}
    for bits in (4, 2):
        space = mobilenet_v3_space(with_bits(_model(digits_run), bits))
        least[bits] = COSTS["weight_bytes"](space.layers(space.smallest()))
    limit = round((least[4] + least[2]) / 2)
    call(monkeypatch, "search", digits_run, "--budget", f"weight_bytes<={limit}", "--evaluations", "6")
    assert "left out, since no subnet is within the budgets: 4 bits" in capsys.readouterr().out
    found = [entry for entry in read_json(digits_run / "family.json") if "weight_bytes" in entry["name"]]
    assert [entry["stage"] for entry in found] == ["2bit"] and found[0]["costs"]["weight_bytes"] <= limit
    message = fails(monkeypatch, capsys, "search", digits_run, "--budget", f"weight_bytes<={least[2] - 1:.0f}")
    assert f"the smallest weight_bytes of this search space is {least[2]:.0f}" in message


def test_impossible_budgets_are_refused_at_once_with_the_smallest_value(digits_run, monkeypatch, capsys):
    lines = len(read_lines(digits_run / "measurements.jsonl"))
    message = fails(monkeypatch, capsys, "search", digits_run, "--budget", "params<=10")
    space = mobilenet_v3_space(with_bits(_model(digits_run), 4))
    assert str(COSTS["params"](space.layers(space.smallest()))) in message
    assert len(read_lines(digits_run / "measurements.jsonl")) == lines


def _model(run):
    from oncequant.models import config_from_json

    return config_from_json(read_json(run / "run.json")["model"]["config"])


def test_run_refuses_impossible_budgets_before_training(tmp_path, monkeypatch, capsys):
    message = fails(monkeypatch, capsys, "run", "--run", tmp_path / "run", "--budget", "params<=10", *QUICK, *SMALL)
    assert "smallest params" in message
    assert not (tmp_path / "run").exists()


def test_partly_trained_runs_can_be_searched_from_anywhere(tmp_path, monkeypatch):
    source = image_folder(tmp_path / "images", 2, 20, 12, "L")
    monkeypatch.chdir(tmp_path)
    call(
        monkeypatch,
        "train",
        "--data",
        "images",
        "--run",
        tmp_path / "run",
        *[w for w in QUICK if w not in ("--evaluations",)][:6],
        "--bit-schedule",
        "4",
        "2",
        *SMALL,
    )
    (tmp_path / "run" / "2bit.safetensors").unlink()
    monkeypatch.chdir("/")
    call(monkeypatch, "search", tmp_path / "run", "--evaluations", "3")
    assert {e["stage"] for e in read_json(tmp_path / "run" / "family.json")} == {"float", "4bit"}
    source.rename(tmp_path / "moved")
    call(monkeypatch, "search", tmp_path / "run", "--evaluations", "4", "--data", tmp_path / "moved")


def test_a_failed_verification_does_not_stop_the_run(digits_run, monkeypatch, capsys):
    from oncequant.export import verify

    monkeypatch.setattr(verify, "_problems", lambda *_: ["made up"])
    message = fails(monkeypatch, capsys, "export", digits_run)
    family = [e["name"] for e in read_json(digits_run / "family.json")]
    rows = {row["name"]: row for row in read_json(digits_run / "exports.json")}
    assert set(family) == set(rows) and all(row["problems"] == ["made up"] for row in rows.values())
    assert message.count("cannot be trusted") == len(family)
    monkeypatch.undo()
    call(monkeypatch, "export", digits_run)


def test_verifying_files_shows_how_many_images_are_done(digits_run, monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    monkeypatch.setattr("oncequant.data.EVALUATED_PIXELS", 1)  # as few at a time as there may be: 64
    call(monkeypatch, "export", digits_run, "float-max")
    images = next(row["images"] for row in read_json(digits_run / "exports.json") if row["name"] == "float-max")
    shown = [line.split(",")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("verify files")]
    assert (
        len(shown) > 2 and shown[0] == f"verify files: 64/{images}" and shown[-1] == f"verify files: {images}/{images}"
    )


@pytest.mark.parametrize(
    "options, named",
    [
        (["--kernel-sizes", "4"], "kernel_sizes"),
        (["--depths", "0", "1"], "depths"),
        (["--width", "0"], "width"),
        (["--resolutions", "1", "2"], "resolutions"),
        (["--depths", "2", "2"], "name every value once"),
        (["--calibration-images", "1"], "calibration_images"),
    ],
)
def test_impossible_model_options_are_refused(tmp_path, monkeypatch, capsys, options, named):
    assert named in fails(monkeypatch, capsys, "train", "--run", tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()


def test_errors_keep_what_looks_like_markup(tmp_path, monkeypatch, capsys):
    assert "[old]" in fails(monkeypatch, capsys, "search", tmp_path / "run [old]")


@pytest.mark.parametrize(
    "budget, named",
    [
        ("speed<=3", "speed<=3"),
        ("bitops<=1.2.3", "bitops<=1.2.3"),
        ("bitops<3", "bitops<3"),
        ("bitops<=", "bitops"),
        ("bitops<=3Q", "3Q"),
    ],
)
def test_malformed_budgets_are_refused_before_training(tmp_path, monkeypatch, capsys, budget, named):
    message = fails(monkeypatch, capsys, "run", "--run", tmp_path / "run", "--budget", budget)
    assert named in message and "weight_bytes" in message
    assert not (tmp_path / "run").exists()


def test_evaluate_prints_one_json_line(digits_run, monkeypatch, capsys):
    family = read_json(digits_run / "family.json")
    entry = next(e for e in family if e["stage"] == "2bit")
    call(monkeypatch, "evaluate", digits_run, entry["name"], "--split", "test")
    found = json.loads(capsys.readouterr().out)
    assert found["top1"] == entry["top1_test"] and found["stage"] == "2bit" and found["images"] > 300
    call(monkeypatch, "evaluate", digits_run, "smallest", "--stage", "4bit")
    assert json.loads(capsys.readouterr().out)["split"] == "validation"


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["evaluate", "RUN", "nonsense"], "nonsense"),
        (["evaluate", "RUN", "largest", "--stage", "5bit"], "stages in this run are 2bit, 4bit, float"),
        (["export", "RUN", "9bit-XL"], "4bit-"),
        (["search", "NOWHERE"], "run.json"),
        (["report", "NOWHERE"], "NOWHERE"),
        (["train", "--data", "NOWHERE/x/y", "--run", "NEW"], "accepted are"),
        (["train", "--bit-schedule", "2", "4", "--run", "NEW"], "bit_schedule"),
        (["cost", "NOWHERE/archs.jsonl"], "archs.jsonl"),
    ],
)
def test_errors_are_one_line_that_names_the_cause(digits_run, tmp_path, monkeypatch, capsys, arguments, named):
    places = {"RUN": str(digits_run), "NEW": str(tmp_path / "new")}
    arguments = [places.get(a, a.replace("NOWHERE", str(tmp_path / "nowhere"))) for a in arguments]
    message = fails(monkeypatch, capsys, *arguments)
    assert message.startswith("error:") and named.replace("NOWHERE", "nowhere") in message
    assert not (tmp_path / "new").exists()


def test_an_unwritable_folder_is_a_clear_error(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("not a folder")
    message = fails(monkeypatch, capsys, "run", "--run", tmp_path / "file" / "run", *QUICK, *SMALL)
    assert "cannot write" in message and "run.json" in message


def test_one_command_at_a_time_works_in_a_folder(digits_run, monkeypatch, capsys):
    monkeypatch.setattr(run_folder, "LOCK_SECONDS", 0.1)
    before = read_lines(digits_run / "commands.jsonl")
    with (digits_run / ".lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        for command in (["search", digits_run], ["export", digits_run]):
            assert f"{digits_run}: another oncequant command works in this" in fails(monkeypatch, capsys, *command)
        call(monkeypatch, "info", digits_run)
    assert read_lines(digits_run / "commands.jsonl") == before
    call(monkeypatch, "export", digits_run, "float-max")


def test_file_systems_without_locks_are_used_without(digits_run, tmp_path, monkeypatch, capsys):
    shutil.copy(digits_run / "run.json", tmp_path)
    for error in (OSError(errno.ENOLCK, "No locks available"), NotImplementedError("no flock")):
        monkeypatch.setattr(run_folder.FileLock, "acquire", Mock(side_effect=error))
        with run_folder.writing(tmp_path, "oncequant a", torch.device("cpu")):
            assert "no locks on this file system" in " ".join(capsys.readouterr().out.split())
    monkeypatch.setattr(run_folder.FileLock, "acquire", Mock(side_effect=PermissionError(errno.EACCES, "no")))
    with pytest.raises(OSError, match=r"cannot write .*\.lock"):
        with run_folder.writing(tmp_path, "oncequant a", torch.device("cpu")):
            pass


def test_a_line_that_a_full_disk_cut_off_is_mended(digits_run, tmp_path):
    shutil.copy(digits_run / "run.json", tmp_path)
    path = tmp_path / "commands.jsonl"
    for torn in ("", '{"comm', "x" * 200_000):
        with path.open("a") as file:
            file.write(torn)
        for command in ("oncequant a", "oncequant b"):
            with run_folder.writing(tmp_path, command, torch.device("cpu")):
                pass
    assert run_folder.commands_of(tmp_path)[1:] == ["oncequant a", "oncequant b"] * 3
    assert path.read_text().count("\n") == 6


def test_a_run_folder_among_the_images_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(image_folder(tmp_path / "images", 2, 20, 12))
    assert "runs/images" in fails(monkeypatch, capsys, "train", "--data", ".")
    assert {path.name for path in (tmp_path / "images").iterdir()} == {"class0", "class1"}
    (tmp_path / "images" / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "images" / "sub")
    assert "--run" in fails(monkeypatch, capsys, "run", "--data", "..", "--run", "here")
    (tmp_path / "images" / "sub").rmdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").rename(tmp_path / "train")  # beside its splits a run folder is in nobody's way
    run_dir, _, data = cli._prepare(Train(data="."), SearchConfig())
    assert run_dir == Path("runs") / tmp_path.name and data.classes == ("class0", "class1")
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    run_dir, *_ = cli._prepare(Train(data="link"), SearchConfig())
    assert run_dir == Path("runs/link")


def test_digits_are_the_bundled_ones_whatever_lies_here(tmp_path, monkeypatch):
    image_folder(tmp_path / "digits", 2, 20, 48)
    monkeypatch.chdir(tmp_path)
    _, settings, data = cli._prepare(Train(), SearchConfig())
    assert (settings.data, data.name, len(data.classes)) == ("digits", "digits", 10)
    _, settings, data = cli._prepare(Train(data="./digits", run=tmp_path / "run"), SearchConfig())
    assert settings.data == str(tmp_path / "digits") and len(data.classes) == 2


def test_a_broken_image_is_refused_before_the_run_folder_is_made(tmp_path, monkeypatch, capsys):
    source = image_folder(tmp_path / "images", 2, 500, 12)
    load = run_folder.RunSettings.load_data

    def break_one(self, device):
        data = load(self, device)
        (source / "class1" / "77.png").write_bytes(b"no image")
        return data

    monkeypatch.setattr(run_folder.RunSettings, "load_data", break_one)
    options = ["--data", source, "--run", tmp_path / "run", "--resident-gib", "0"]
    message = fails(monkeypatch, capsys, "train", *options)
    assert "class1/77.png: cannot be read as an image" in message and not (tmp_path / "run").exists()


def test_images_much_larger_than_the_network_sees_are_mentioned(tmp_path, capsys):
    for size, says in ((80, True), (40, False)):
        source = image_folder(tmp_path / f"images{size}", 2, 5, size)
        cli._prepare(Train(data=str(source), run=tmp_path / f"run{size}"), SearchConfig())
        assert (f"images of {size} px are scaled to 32 px" in " ".join(capsys.readouterr().out.split())) == says


def test_missing_packages_are_named_before_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "find_spec", lambda name: None if name == "matplotlib" else name)
    message = fails(monkeypatch, capsys, "run", "--run", tmp_path / "run")
    assert "(matplotlib)" in message and "oncequant[all]" in message and not (tmp_path / "run").exists()


def test_an_architecture_in_a_file_is_measured_and_exported(digits_run, tmp_path, monkeypatch, capsys):
    space = mobilenet_v3_space(with_bits(_model(digits_run), 4))
    arch = space.sample(np.random.default_rng(5))
    file = tmp_path / "mine.json"
    file.write_text(space.brief(arch).to_json())
    call(monkeypatch, "export", digits_run, file, "smallest", "--stage", "4bit")
    rows = {row["name"]: row for row in read_json(digits_run / "exports.json")}
    assert rows["4bit-mine"]["problems"] == rows["4bit-smallest"]["problems"] == []
    entry = next(e for e in read_json(digits_run / "family.json") if e["name"] == "4bit-mine")
    assert entry["bits"] == 4 and entry["arch"] == dict(space.brief(arch))
    other = tmp_path / "other" / "mine.json"
    other.parent.mkdir()
    other.write_text(space.brief(space.largest()).to_json())
    shutil.copy(other, tmp_path / "S.json")
    for one in (other, tmp_path / "S.json"):
        assert "rename the file" in fails(monkeypatch, capsys, "export", digits_run, one, "--stage", "4bit")
    assert "--stage" in fails(monkeypatch, capsys, "export", digits_run, "4bit-mine", "--stage", "2bit")
    capsys.readouterr()
    call(monkeypatch, "evaluate", digits_run, file, "--stage", "4bit", "--split", "test")
    assert json.loads(capsys.readouterr().out)["top1"] == entry["top1_test"]


@pytest.mark.parametrize("method, flag, value", [
    ("oqat", "--population", "50"), ("oqat", "--front-members", "3"), ("dnas", "--front", "macs"),
])  # fmt: skip
def test_options_of_another_methods_search_are_refused(tmp_path, monkeypatch, capsys, method, flag, value):
    message = fails(monkeypatch, capsys, "run", "--run", tmp_path / "run", "--method", method, flag, value)
    assert f"{flag} is not an option" in message and not (tmp_path / "run").exists()


def test_an_option_that_an_old_folder_does_not_know_is_noted(digits_run, tmp_path, monkeypatch):
    for file in ("float.safetensors", "4bit.safetensors", "2bit.safetensors"):
        shutil.copy(digits_run / file, tmp_path)
    run = read_json(digits_run / "run.json")
    for place in (run, run["settings"]):
        del place["method_config"]["calibration_images"]
    write_json(tmp_path / "run.json", run)
    options = ["--epochs", "1", "--float-epochs", "1", "--min-steps", "6", "--random-subnets", "1", *SMALL]
    options += ["--max-train", "200", "--resolutions", "8", "10", "--bit-schedule", "4", "2"]
    call(monkeypatch, "train", "--run", tmp_path, *options, "--calibration-images", "50")
    found = read_json(tmp_path / "run.json")
    assert (
        found["settings"]["method_config"]["calibration_images"] == 50 == found["method_config"]["calibration_images"]
    )
    assert found["command"] == run["command"] and found["settings"]["method_config"].keys() == {
        *run["settings"]["method_config"],
        "calibration_images",
    }


# -- one of several processes


def test_export_by_one_of_several_processes_needs_no_others(digits_run, monkeypatch, capsys):
    monkeypatch.setattr(progress.console, "quiet", False)  # as it is again after this test
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    call(monkeypatch, "export", digits_run, "float-max")
    assert "float-max" in capsys.readouterr().out
    monkeypatch.setenv("RANK", "1")
    call(monkeypatch, "export", digits_run, "float-max")
    assert not capsys.readouterr().out


@pytest.mark.parametrize("error, says", [
    (KeyError("of the program"), "Traceback"),
    (torch.OutOfMemoryError("GPU memory is full"), "error: GPU memory is full (training needs less"),
])  # fmt: skip
def test_any_error_of_one_of_several_processes_ends_it_at_once(monkeypatch, capsys, error, says):
    def handler(options):
        raise error

    ended = []
    monkeypatch.setitem(cli.HANDLERS, Info, handler)
    monkeypatch.setattr("os._exit", ended.append)
    with pytest.raises(type(error) if isinstance(error, KeyError) else SystemExit):
        call(monkeypatch, "info")  # alone: the way out that Python has
    assert not ended
    capsys.readouterr()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        call(monkeypatch, "info")
    assert ended == [1] and says in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[]", "3", '{"resolution": 8.0}', "{", '{"resolution": 9}'])
def test_a_file_that_is_no_architecture_is_refused(digits_run, tmp_path, monkeypatch, capsys, text):
    (tmp_path / "mine.json").write_text(text)
    for command in ("evaluate", "export"):
        message = fails(monkeypatch, capsys, command, digits_run, tmp_path / "mine.json")
        assert "mine.json" in message or "resolution = 9 is not allowed" in message


# -- costs


@given(number=st.decimals(0, 999, places=3), suffix=st.sampled_from(["", "k", "M", "G"]))
def test_budgets_are_the_number_as_written(number, suffix):
    exact = number * {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}[suffix]
    budget = Budget.parse(f"weight_bytes<={number}{suffix}")
    assert budget.limit == float(exact) and Budget.parse(str(budget)) == budget


def test_cost_command_reads_files_and_standard_input(tmp_path, monkeypatch, capsys):
    space = mobilenet_v3_space(with_bits(replace(PRESETS["imagenet"], width=1.2), 3))
    archs = [space.sample(np.random.default_rng(i)) for i in range(3)]
    (tmp_path / "archs.jsonl").write_text("".join(space.brief(a).to_json() + "\n" for a in archs))
    call(monkeypatch, "cost", tmp_path / "archs.jsonl", "--width", "1.2", "--bits", "3")
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows == [{name: cost(space.layers(a)) for name, cost in COSTS.items()} for a in archs]
    command = [sys.executable, "-c", "from oncequant.cli import main; main()", "cost", "-", "--width", "1.2"]
    full = "".join(a.to_json() + "\n" for a in archs)  # bits written out: --bits does not matter
    done = subprocess.run(command, input=full, capture_output=True, text=True, check=True)
    assert [json.loads(line) for line in done.stdout.splitlines()] == rows


def test_cost_command_names_line_and_choice(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.jsonl").write_text('{"resolution": 128}\n')
    assert "line 1" in fails(monkeypatch, capsys, "cost", tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_text('{"resolution": 128, "colour": 1}\n')
    assert "colour" in fails(monkeypatch, capsys, "cost", tmp_path / "b.jsonl")


def test_info_lists_presets(monkeypatch, capsys):
    call(monkeypatch, "info")
    out = capsys.readouterr().out
    assert "imagenet" in out and "bitops" in out


# -- any image folder


def image_folder(root, classes, per_class, size, mode="RGB"):
    rng = np.random.default_rng(0)
    for c in range(classes):
        folder = root / f"class{c}"
        folder.mkdir(parents=True)
        for i in range(per_class):
            side = size if isinstance(size, int) else int(rng.integers(*size))
            pixels = rng.integers(0, 128, (side, side + i % 3, 3), dtype=np.uint8) + np.uint8(100 * c)
            Image.fromarray(pixels).convert(mode).save(folder / f"{i}.png")
    return root


@pytest.mark.parametrize("mode, size", [("RGB", (24, 60)), ("L", 12)])
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
    assert info["model"]["preset"] == ("nano" if mode == "L" else "cifar")
    stages = [entry["stage"] for entry in read_json(tmp_path / "run" / "family.json") if entry["stage"] != "float"]
    is_short = any(stages.count(stage) < 3 for stage in stages)
    assert ("fewer than three networks on a front" in capsys.readouterr().out) == is_short
    assert all(row["problems"] == [] for row in read_json(tmp_path / "run" / "exports.json"))


def test_compare_counts_accuracy_and_training_images(digits_run, monkeypatch, capsys):
    call(monkeypatch, "compare", digits_run, "--deployments", "2", "--evaluations", "6")
    shown = capsys.readouterr().out
    assert all(way in shown for way in ("supernet", "nas-then-quantize", "search-then-retrain", "uniform"))
    found = read_json(digits_run / "compare.json")
    assert found["bits"] == 2 and len(found["deployments"]) == 8
    rows = list(csv.DictReader((digits_run / "compare.csv").open()))
    assert [float(row["top1_test"]) for row in rows] == [row["top1_test"] for row in found["deployments"]]
    steps, batch = 18, 64  # one epoch of 200 images less the validation split is 2 steps, --min-steps 6
    totals = {(row["way"], row["deployments"]): row for row in found["totals"]}
    metrics = read_lines(digits_run / "metrics.jsonl")
    supernets = sum({row["stage"]: row["images"] for row in metrics}.values())
    assert supernets == steps * batch * 3  # float, 4 and 2 bits; largest, smallest and one random subnet
    assert totals["supernet", 2]["images"] == totals["supernet", 1]["images"] == supernets
    assert totals["nas-then-quantize", 1]["images"] == supernets / 3 + 6 * batch
    assert totals["search-then-retrain", 1]["images"] == supernets + 2 * 6 * batch
    assert totals["uniform", 1]["images"] == 2 * 6 * batch
    for row in found["deployments"]:
        assert row["bitops"] <= row["budget"]
        assert 0 <= row["top1_test"] <= 1 and (row["images"] == 0) == (row["way"] == "supernet")
    before = {path: path.stat().st_mtime_ns for path in digits_run.glob("compare/**/*.safetensors")}
    assert len(before) >= 5
    call(monkeypatch, "compare", digits_run, "--deployments", "2", "--evaluations", "6")
    after = {path: path.stat().st_mtime_ns for path in digits_run.glob("compare/**/*.safetensors")}
    assert after == before and read_json(digits_run / "compare.json") == found


def test_compare_needs_the_supernet(digits_run, tmp_path, monkeypatch, capsys):
    assert "holds bit-widths 4, 2" in fails(monkeypatch, capsys, "compare", digits_run, "--bits", "3")
    assert "--deployments" in fails(monkeypatch, capsys, "compare", digits_run, "--deployments", "0")
    for file in ("run.json", "float.safetensors", "4bit.safetensors", "2bit.safetensors"):
        shutil.copy(digits_run / file, tmp_path)
    lines = (digits_run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join(line for line in lines if '"float"' not in line))
    message = fails(monkeypatch, capsys, "compare", tmp_path)  # its float supernet was copied
    assert "does not say how float was trained" in message


def test_hand_scaled_networks_are_alike_in_all_blocks():
    space = mobilenet_v3_space(with_bits(PRESETS["nano"], 2))
    archs = uniform_archs(space)
    assert len(archs) == 3 * 2 * 2 * 3  # resolutions, depths, kernels, ratios
    assert [cost for _, cost in archs] == sorted(cost for _, cost in archs)
    assert archs[0][0] == space.smallest() and archs[-1][0] == space.largest()
    for arch, cost in archs:
        assert cost == COSTS["bitops"](space.layers(arch))
        for kind in ("depth", "kernel_size", "expand_ratio"):
            assert len({value for name, value in arch.items() if name.endswith(kind)}) == 1
