"""A run from Python is a run: the same checks, files and errors as from the command line."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import call, fails, image_folder

import oncequant as oq
from oncequant.agreed import agreed
from oncequant.files import FileError, read_json, user_path, write_json

RNG = np.random.default_rng(0)
ROWS = [(RNG.integers(0, 128, (8, 8), dtype=np.uint8) + 12 * (i % 10), i % 10) for i in range(160)]
FEWER, MIRRORED = ROWS[:120], [(image[:, ::-1], label) for image, label in ROWS]
COLOUR = [(np.repeat(image[..., None], 3, 2), label) for image, label in ROWS]
NETWORK = dict(preset="resnet-nano", width=0.5, resolutions=[8], depths=[1])
FAST = dict(epochs=1, float_epochs=1, min_steps=3, batch_size=32, calibration_images=32)
CONFIG = oq.oqat.Config(bit_schedule=(4,), **FAST)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run of Python objects, whose folder was given as text."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MY_RUNS", str(home))
        run = oq.new_run(CONFIG, (ROWS, None, None), "$MY_RUNS/run", **NETWORK)
        oq.train_run(CONFIG, run)
        oq.search_run(CONFIG, run, "bitops<=5M", evaluations=3)
        oq.export_run(CONFIG, run, formats="package")
        assert oq.report_run("$MY_RUNS/run") == home / "run" / "report" / "index.html"
        assert oq.load_package("$MY_RUNS/run/exports/float-max").graph.classes == tuple(map(str, range(10)))
    assert run.folder == home / "run" and {p.name for p in home.iterdir()} == {"run"}
    return run


def loaded(rows, size=8, **options):
    return oq.load_data((rows, None, None), size=size, **options)


def test_the_command_line_reads_the_folder_without_images(made, monkeypatch, capsys):
    call(monkeypatch, "info", made.folder)
    shown = " ".join(capsys.readouterr().out.split())
    assert "oqat on list, preset resnet-nano" in shown and "stages trained: float, 4bit" in shown
    call(monkeypatch, "report", made.folder)


@pytest.mark.parametrize("command", [("search",), ("export",), ("evaluate", "largest"), ("compare",)])
def test_commands_that_need_the_images_say_how_in_one_line(command, made, monkeypatch, capsys):
    name, *words = command
    message = fails(monkeypatch, capsys, name, made.folder, *words)
    assert message.startswith("error: ") and "was made of Python objects" in message
    assert f"open_run('{made.folder}', data=...)" in message and "--data with a folder" in message


def test_python_goes_on_with_the_data_sets_themselves(made):
    for data in ((ROWS, None, None), loaded(ROWS), made.data):
        cfg, run = oq.open_run(str(made.folder), data=data)
        assert run.data.fingerprint == made.data.fingerprint and cfg.compute == CONFIG.compute
        assert oq.evaluate_run(cfg, run, "smallest")["images"] == len(made.data.validation)
    for _ in range(2):  # a notebook's cell, again
        oq.train_run(CONFIG, oq.new_run(CONFIG, (ROWS, None, None), made.folder, **NETWORK))


def test_run_json_says_what_is_true_and_nothing_else(made, tmp_path):
    settings = read_json(made.folder / "run.json")["settings"]
    assert settings["data"] is None and settings["validation_fraction"] == 0.15 and settings["seed"] == 0
    data = loaded(ROWS, seed=3, validation_fraction=0.25, flip=False, max_train=80)
    oq.new_run(CONFIG, data, tmp_path / "asked", **NETWORK)
    values = read_json(tmp_path / "asked" / "run.json")
    assert values["seed"] == 0  # of training
    asked = dict(seed=3, validation_fraction=0.25, test_fraction=0.2, flip=False, max_train=80, size=8)
    assert values["settings"].items() >= asked.items()
    by_hand = replace(data, loading=None)
    oq.new_run(CONFIG, by_hand, tmp_path / "hand", **NETWORK)
    assert not {"validation_fraction", "test_fraction"} & read_json(tmp_path / "hand" / "run.json")["settings"].keys()
    assert oq.open_run(tmp_path / "hand", data=by_hand)[1].data is by_hand


WAYS = {  # what a user does otherwise in a folder that holds a run -> what the one line names
    "other pictures": (CONFIG, loaded(MIRRORED), "the images"),
    "fewer pictures": (CONFIG, loaded(FEWER), "train split: 29 gone"),
    "another order": (CONFIG, loaded(ROWS[::-1]), "the images"),
    "other splits": (CONFIG, loaded(ROWS, seed=1), "the images"),
    "larger pictures": (CONFIG, loaded(ROWS, size=12), r"size of the images \(there 8, now 12\).*size=8"),
    "no mirroring": (CONFIG, loaded(ROWS, flip=False), r"flip of the images \(there True, now False\)"),
    "another seed": (replace(CONFIG, seed=1), loaded(ROWS), r"seed \(there 0, now 1\)"),
    "longer": (replace(CONFIG, epochs=2), loaded(ROWS), r"epochs \(there 1, now 2\)"),
    "other bits": (replace(CONFIG, bit_schedule=(4, 2)), loaded(ROWS), r"bit_schedule \(there \[4\], now \[4, 2\]\)"),
    "another batch": (replace(CONFIG, batch_size=16), loaded(ROWS), r"batch_size \(there 32, now 16\)"),
    "another method": (oq.qfa.Config(**FAST), loaded(ROWS), r"method \(there 'oqat', now 'qfa'\)"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_second_training_with_something_else_is_refused(way, made):
    cfg, data, names = WAYS[way]
    run = oq.Run(str(made.folder), made.model, data)
    before = {path: path.read_bytes() for path in made.folder.rglob("*") if path.is_file()}
    method = oq.METHODS["qfa" if isinstance(cfg, oq.qfa.Config) else "oqat"]
    for act in (
        lambda: method.train(cfg, run),
        lambda: method.choose(cfg, method.SearchOptions(), run),
        lambda: oq.train_run(cfg, run),
        lambda: oq.search_run(cfg, run),
        lambda: oq.export_run(cfg, run),
        lambda: oq.evaluate_run(cfg, run, "largest"),
    ):
        with pytest.raises(FileError, match=names) as raised:
            act()
        assert str(made.folder) in str(raised.value) and "\n" not in str(raised.value)
    assert before == {path: path.read_bytes() for path in made.folder.rglob("*") if path.is_file()}


def test_making_it_again_otherwise_is_refused(made):
    for data, options, names in (
        ((ROWS, None, None), dict(NETWORK, preset="nano"), "preset .there 'resnet-nano', now 'nano'"),
        ((ROWS, None, None), dict(NETWORK, width=0.75), "width .there 0.5, now 0.75"),
        ((MIRRORED, None, None), NETWORK, "the images"),
        ((ROWS, ROWS[:20], None), NETWORK, "images"),
        (Path("digits"), NETWORK, "list|images"),
    ):
        with pytest.raises(FileError, match=names):
            oq.new_run(CONFIG, data, made.folder, **{"depths": [1], **options} if options is NETWORK else options)


def test_networks_that_do_not_fit_the_images_are_one_clear_error(made, tmp_path):
    four = [row for row in ROWS if row[1] < 4]
    for data, says in (
        (loaded(four), "the network has 10 classes, the images 4"),
        (loaded(COLOUR), "the network has 1 channels, the images 3"),
        (loaded(ROWS, size=6), "needs images of 8 px, they have 6: load them with size=8"),
    ):
        for folder in (made.folder, tmp_path / "new"):
            with pytest.raises(ValueError, match=says):
                oq.oqat.train(CONFIG, oq.Run(folder, made.model, data))
    with pytest.raises(ValueError, match="load them with size=8"):
        oq.new_run(CONFIG, loaded(ROWS, size=6), tmp_path / "new", **NETWORK)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", oq.METHODS)
def test_a_run_that_is_made_by_hand_gets_the_same_file(name, made, tmp_path):
    method = oq.METHODS[name]
    cfg = method.Config(**FAST)
    model = made.model if name != "dnas" else oq.ModelOptions("resnet20", resolutions=(8,)).config(10, 1)
    run = oq.Run(tmp_path / "run", model, loaded(ROWS))
    assert agreed(name, cfg, run) == cfg == agreed(name, cfg, run)
    values = read_json(tmp_path / "run" / "run.json")
    assert values["method"] == name and values["data"]["fingerprint"] == run.data.fingerprint
    assert values.keys() == read_json(made.folder / "run.json").keys()
    with pytest.raises(FileError, match="seed"):
        method.train(replace(cfg, seed=7), run)
    with pytest.raises(FileError, match="images"):
        method.train(cfg, replace(run, data=loaded(MIRRORED)))


def test_a_network_of_another_run_is_not_taken_for_trained(made, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "float.safetensors").write_bytes((made.folder / "float.safetensors").read_bytes())
    run = oq.new_run(CONFIG, (COLOUR, None, None), tmp_path / "run", **NETWORK)
    with pytest.raises(FileError, match="float.safetensors is a network of another architecture"):
        oq.train_run(CONFIG, run)


def test_what_is_left_open_is_as_the_folder_has_it(tmp_path):
    options = replace(CONFIG, precision="auto", batch_size=None)
    run = oq.new_run(options, (ROWS, None, None), tmp_path / "run", **NETWORK)
    path = tmp_path / "run" / "run.json"
    values = read_json(path)
    assert values["settings"]["method_config"]["precision"] == "float32"  # decided once, as by the command line
    for place in (values, values["settings"]):
        place["method_config"] |= {"precision": "bfloat16", "batch_size": 16}
    write_json(path, values)
    assert agreed("oqat", options, run) == replace(options, precision="bfloat16", batch_size=16)


def test_python_and_command_line_make_equal_runs(tmp_path, monkeypatch, capsys):
    source = image_folder(tmp_path / "images", 2, 20, 12)
    words = "--preset resnet-nano --width 0.5 --resolutions 8 --depths 1 --bit-schedule 4 --epochs 1 --float-epochs 1"
    words += " --min-steps 3 --batch-size 32 --calibration-images 32"
    call(monkeypatch, "train", "--data", source, "--run", tmp_path / "line", *words.split())
    monkeypatch.chdir(tmp_path)
    for name, data in (("a", "images"), ("b", Path("images")), ("c", oq.load_data("images", size=8))):
        run = oq.new_run(CONFIG, data, name, **NETWORK)
        line, python = (read_json(folder / "run.json") for folder in (tmp_path / "line", run.folder))
        for values in (line, python):
            values.pop("command")
            values["settings"].pop("size", None)
        assert line == python
    oq.train_run(CONFIG, run)
    assert (tmp_path / "c/4bit.safetensors").read_bytes() == (tmp_path / "line/4bit.safetensors").read_bytes()
    monkeypatch.chdir("/")
    call(monkeypatch, "evaluate", tmp_path / "c", "largest")  # the images are found from anywhere
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["images"] == 6


def test_values_of_another_kind_are_one_line(made):
    for act, says in (
        (lambda: oq.train_run(CONFIG, str(made.folder)), "a run is what new_run or open_run returns, not a str"),
        (lambda: oq.train_run(oq.oqat.SearchOptions(), made), "not the Config of a method: oqat, qfa, dnas"),
        (lambda: oq.new_run(CONFIG, ROWS, made.folder), "a tuple of three Python datasets, not a list"),
        (lambda: oq.new_run(CONFIG, (ROWS,), made.folder), "not 1 things"),
        (lambda: oq.new_run(CONFIG, (ROWS, None, None), made.folder, widht=1), "no option 'widht'"),
        (lambda: oq.export_run(CONFIG, made, "4bit-X"), "no chosen subnet is called '4bit-X'"),
        (lambda: oq.export_run(CONFIG, made, formats="onxx"), "onxx"),
        (lambda: oq.search_run(CONFIG, made, "bitops<20"), "bitops<20"),
        (lambda: oq.open_run(""), "empty"),
    ):
        with pytest.raises((ValueError, FileError), match=says) as raised:
            act()
        assert "\n" not in str(raised.value)


def test_paths_are_written_as_in_a_shell(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", "a/b")
    assert user_path("~/x") == tmp_path / "x" and user_path("$PLACE/c") == Path("a/b/c")
    assert user_path(tmp_path) == tmp_path and oq.Run("~/x", None, None).folder == tmp_path / "x"
    for wrong, says in (("", "empty"), ("~no-such-user/x", "no user")):
        with pytest.raises(ValueError, match=says):
            user_path(wrong)
    assert not (Path(os.curdir) / "~").exists()
