"""`oncequant predict`: pictures in, classes out, by an exported network and without torch."""

import csv
import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from commands import fails
from PIL import Image

from oncequant import load_classifier
from oncequant.export.package import load_package
from oncequant.files import FileError, read_json, write_json
from oncequant.predict import main

ALONE = """
import sys
from importlib.abc import MetaPathFinder
class Refuse(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        root = name.partition(".")[0]
        if root not in ("oncequant", "onnxruntime", "numpy", "PIL") and root not in sys.stdlib_module_names:
            raise ImportError(f"{name} is not there")
sys.meta_path.insert(0, Refuse())
from oncequant.__main__ import main
sys.argv = ["oncequant", "predict", *sys.argv[1:]]
main()
"""
NAMES = ("a.jpg", "b.png", "more/c.webp", "more/f.png")  # of the fixture `pictures` that are classified


def digit(seed, side=20, mode="L"):
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + 3, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture(scope="module")
def exported(digits_run):
    return digits_run / "exports" / read_json(digits_run / "exports.json")[-1]["name"]


@pytest.fixture
def pictures(tmp_path):
    """Pictures of several kinds, at two depths, beside what is none."""
    folder = tmp_path / "pictures"
    (folder / "more" / ".hidden").mkdir(parents=True)
    (folder / "__MACOSX").mkdir()
    for i, name in enumerate(("b.png", "a.jpg", "more/c.webp", "more/.hidden/d.png", "__MACOSX/e.png")):
        digit(i).save(folder / name)
    digit(7, mode="RGBA").save(folder / "more" / "f.png")
    (folder / "notes.txt").write_text("no picture")
    (folder / "more" / "upwards").symlink_to(folder)
    return folder


def predict(capsys, *words):
    """Exit code, lines of standard output, standard error."""
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    told = capsys.readouterr()
    return stopped.value.code, told.out.splitlines(), told.err


def test_answers_are_those_of_the_package(exported, pictures):
    network, classify = load_package(exported), load_classifier(str(exported))
    paths = [pictures / name for name in NAMES]
    for path, answer in zip(paths, classify(paths, top=10)):
        shares = network(network.prepare(path)).softmax(1)[0].double()
        assert answer.picture == path and not answer.problem
        assert np.allclose(sorted(shares.tolist(), reverse=True), answer.probabilities, atol=0.1)  # integers, floats
        assert np.isclose(sum(answer.probabilities), 1)
        assert answer.classes[0] == network.graph.classes[int(shares.argmax())]


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "I;16", "F"])
def test_pixels_are_those_of_training(mode, exported, tmp_path):
    image = digit(3, 41, "L" if mode in ("I;16", "F") else mode)
    if mode == "F":
        image = Image.fromarray(np.asarray(image, np.float32) / 255)
    elif mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    path = tmp_path / ("one.tiff" if mode in ("F", "I;16") else "one.png")
    image.save(path)
    expected = load_package(exported).prepare(path)[0].numpy()
    assert np.allclose(load_classifier(exported).pixels(path), expected, atol=1e-2)


def test_a_line_for_each_picture_of_a_folder_at_any_depth(exported, pictures, capsys):
    code, lines, problems = predict(capsys, exported, pictures)
    assert (code, problems) == (0, "")
    assert [line.rpartition(": ")[0] for line in lines] == [str(pictures / name) for name in NAMES]
    assert all(line.rpartition(": ")[2].split()[0] in "0123456789" and line.endswith(" %") for line in lines)
    one = predict(capsys, exported / "model.onnx", pictures / "b.png")
    assert one == (0, [lines[1]], "")


def test_json_and_csv_say_the_same(exported, pictures, capsys):
    rows = [json.loads(line) for line in predict(capsys, exported, pictures, "--json")[1]]
    assert [set(row) for row in rows] == [{"picture", "class", "probability"}] * 4
    code, lines, _ = predict(capsys, "--csv", exported, pictures, "--top", "2")
    table = list(csv.DictReader(io.StringIO("\n".join(lines))))
    for row, line in zip(rows, table, strict=True):
        assert (row["picture"], row["class"]) == (line["picture"], line["class"])
        assert abs(row["probability"] - float(line["probability"])) < 1e-6
        assert float(line["probability2"]) <= float(line["probability"]) and line["class2"] != line["class"]
    best = json.loads(predict(capsys, exported, pictures, "--json", "--top", "3")[1][0])["top"]
    assert [one["class"] for one in best[:1]] == [rows[0]["class"]] and len(best) == 3


def test_broken_pictures_are_named_and_skipped(exported, pictures, capsys):
    whole = predict(capsys, exported, pictures)[1]
    content = (pictures / "b.png").read_bytes()
    (pictures / "cut.png").write_bytes(content[:-12])
    (pictures / "bad.png").write_bytes(content[:60] + bytes([content[60] ^ 1]) + content[61:])
    (pictures / "text.jpg").write_text("no picture")
    (pictures / "empty.gif").write_bytes(b"")
    missing = pictures / "missing.png"
    code, lines, problems = predict(capsys, exported, missing, pictures)
    assert code == 1 and lines == whole
    assert f"{missing}: does not exist" in problems and "error: 5 of 9 pictures cannot be read" in problems
    for name in ("cut.png: cannot be read as an image: truncated", "bad.png: cannot be read as an image: damaged"):
        assert name in problems
    for name in ("text.jpg", "empty.gif"):
        assert f"{pictures / name}: cannot be read as an image" in problems
    code, lines, _ = predict(capsys, exported, missing, "--json")
    assert (code, lines) == (1, [])


def test_a_run_and_the_name_of_a_network(digits_run, pictures, capsys, tmp_path):
    name = read_json(digits_run / "exports.json")[-1]["name"]
    expected = predict(capsys, digits_run / "exports" / name, pictures)
    assert predict(capsys, digits_run, name, pictures) == expected
    run = tmp_path / "copy"
    shutil.copytree(digits_run, run)
    family = read_json(run / "family.json")
    write_json(run / "family.json", [{**m, "arch": {"resolution": 99}} if m["name"] == name else m for m in family])
    code, lines, note = predict(capsys, run, name, pictures)
    assert (code, lines) == expected[:2] and note == f"{name}: still the network of an earlier search\n"
    shutil.rmtree(run / "exports" / name)
    assert f"`oncequant export {run} {name}`" in predict(capsys, run, name, pictures)[2]


def test_it_works_without_torch(exported, pictures, capsys):
    command = [sys.executable, "-c", ALONE, str(exported), str(pictures)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == predict(capsys, exported, pictures)[1]


def test_answers_do_not_depend_on_how_many_there_are(exported, tmp_path):
    for i in range(70):  # more than are classified together
        digit(i).save(tmp_path / f"{i:02}.png")
    paths, classify = sorted(tmp_path.iterdir()), load_classifier(exported)
    together = list(classify(paths))
    assert len(together) == 70 and [next(classify([path])) for path in paths[60:]] == together[60:]


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ([], 2, "the network and the pictures are missing"),
        (["{net}"], 1, "give at least one picture"),
        (["{net}", ""], 2, "an argument is empty text"),
        (["nowhere", "a.png"], 1, "nowhere does not exist"),
        (["{tmp}", "a.png"], 1, "has no model.onnx and is no run folder"),
        (["{tmp}/none.onnx", "a.png"], 1, "none.onnx does not exist"),
        (["{tmp}/other.onnx", "a.png"], 1, "ONNX Runtime cannot read"),
        (["{run}"], 1, "its network is missing, one of"),
        (["{run}", "4bit-Q", "a.png"], 1, "has no exported network '4bit-Q'"),
        (["{net}", "{tmp}/empty"], 1, "empty: no pictures in it"),
        (["{net}", "a.png", "--top", "0"], 1, "--top 0: use 1 to 10, the number of classes"),
        (["{net}", "a.png", "--top", "many"], 2, "--top: invalid int value: 'many'"),
        (["{net}", "a.png", "--json", "--csv"], 2, "--csv: not allowed with argument --json"),
        (["{net}", "a.png", "--jsn"], 2, "unrecognized arguments: --jsn"),
    ],
)
def test_one_line_for_each_mistake(words, status, message, exported, digits_run, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.onnx").write_text("something else")
    words = [word.format(net=exported, run=digits_run, tmp=tmp_path) for word in words]
    monkeypatch.setattr("sys.argv", [])
    told = fails(monkeypatch, capsys, "predict", *words, status=status)
    assert message in told and told.startswith("error: ") and told.count("error:") == 1


def test_a_model_of_another_program_is_refused(exported, tmp_path):
    import onnx

    model = onnx.load(exported / "model.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(FileError, match="no network that `oncequant export` wrote"):
        load_classifier(tmp_path)


def test_the_reader_may_stop_early(exported, pictures):
    for i in range(2000):
        (pictures / f"b{i}.png").symlink_to(pictures / "b.png")
    command = f"{sys.executable} -m oncequant predict {exported} {pictures} | head -n 1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert done.stdout.count("\n") == 1 and done.stderr == ""
