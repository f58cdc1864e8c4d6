"""What the report tells of right and wrong answers: matrix, classes, the surest mistakes as small pictures."""

import base64
import csv
import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
from commands import QUICK, SMALL, call, fails
from PIL import Image
from test_report import CLASSES, data_in, make_run_folder

import oncequant as oq
from oncequant import options
from oncequant.answers import Answers, answers_path, read_answers, write_answers
from oncequant.records import Member, read_records
from oncequant.report import write_report


def write_synthetic(folder, classes, images, seed=0):
    """Answers of every member of a synthetic run, of which most are right."""
    rng, made = np.random.default_rng(seed), {}
    for member in read_records(folder / "family.json", Member):
        labels = rng.integers(0, classes, images)
        said = np.where(rng.random(images) < 0.8, labels, rng.integers(0, classes, images))
        answers = Answers(torch.tensor(labels), torch.tensor(said), torch.rand(images), classes)
        write_answers(answers_path(folder, member.stage, member.arch), answers, "these")
        made[member.name] = answers
    return made


def test_the_page_has_the_matrix_of_every_network_and_tables_beside_it(tmp_path):
    folder = make_run_folder(tmp_path / "run", measurements=9)
    made = write_synthetic(folder, 10, 300)
    page = write_report(folder, pictures=False)
    shown = data_in(page)["answers"]
    assert shown["classes"] == CLASSES and [n["name"] for n in shown["networks"]] == list(made)
    for network in shown["networks"]:
        answers = made[network["name"]]
        cells = [(t, p, n) for t, p, n in answers.pairs() if t != p]
        assert sorted(map(tuple, network["confused"])) == cells
        counts = [n for *_, n in network["confused"]]
        assert counts == sorted(counts, reverse=True) and sum(counts) == network["wrong"]
        assert [network[k] for k in ("top1", "balanced")] == [answers.accuracy.top1, answers.accuracy.balanced]
        for i, (recall, precision) in enumerate(zip(answers.recall, answers.precision)):
            assert network["right"][i] / network["images"][i] == recall
            assert network["right"][i] / network["said"][i] == precision
            row = [(p, n) for t, p, n in network["confused"] if t == i]
            assert network["mostly"][i] == list(row[0])
        probabilities = [row[3] for row in network["mistakes"]]
        assert probabilities == sorted(probabilities, reverse=True) and len(probabilities) == 12
    with (page.parent / "confusion.csv").open(newline="") as file:
        rows = [(r["network"], r["true"], r["answer"], int(r["images"])) for r in csv.DictReader(file)]
    assert rows == [(name, CLASSES[t], CLASSES[p], n) for name, a in made.items() for t, p, n in a.pairs()]
    with (page.parent / "classes.csv").open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["network"] == "2bit-M"]
    assert [float(r["recall"]) for r in rows] == made["2bit-M"].recall and rows[2]["class"] == "a < b & c"
    text = page.read_text()
    assert "<b>bold" not in text and text.count("</script>") == 2


@pytest.mark.parametrize("classes, listed", [(2, None), (100, None), (101, 50), (1000, 50)])
def test_pages_of_many_classes_stay_small(classes, listed, tmp_path):
    folder = make_run_folder(tmp_path / "run", measurements=3)
    write_synthetic(folder, classes, 20 * classes)
    page = write_report(folder, pictures=False)
    networks = data_in(page)["answers"]["networks"]
    assert listed is None or {len(network["confused"]) for network in networks} == {listed}
    assert page.stat().st_size < 600_000
    assert data_in(page)["answers"]["classes"] == (CLASSES if classes == 2 else list(map(str, range(classes))))


def test_older_folders_say_that_nothing_was_kept(tmp_path):
    folder = make_run_folder(tmp_path, measurements=3)
    assert data_in(write_report(folder))["answers"] is None and not (folder / "report/confusion.csv").exists()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Run folder and source of a run on coloured pictures, which it can read again."""
    root = tmp_path_factory.mktemp("photos")
    source, rng = root / "pictures", np.random.default_rng(0)
    for number in range(60):  # nothing tells the classes apart
        (source / f"class{number % 3}").mkdir(parents=True, exist_ok=True)
        pixels = Image.fromarray(rng.integers(0, 255, (5, 5, 3), dtype=np.uint8))
        pixels.resize((40, 40), Image.Resampling.BICUBIC).save(source / f"class{number % 3}" / f"{number:02}.png")
    with pytest.MonkeyPatch.context() as patch:
        words = "--preset", "resnet-nano", "--resolutions", "36", "--no-flip"
        call(patch, "run", "--data", source, "--run", root / "run", *words, *QUICK, *SMALL[:2])
    return root / "run", source


def mistakes(page):
    shown = data_in(page)["answers"]
    return shown, {row[0] for network in shown["networks"] for row in network["mistakes"]}


def test_surest_mistakes_are_shown_as_small_pictures(photos, monkeypatch):
    folder, _ = photos
    first = (folder / "report/index.html").read_bytes()  # of `run`, which had the images
    shown, wrong = mistakes(folder / "report/index.html")
    assert wrong and set(shown["thumbnails"]) == set(map(str, wrong)) and shown["note"] == ""
    data = oq.open_run(folder)[1].data
    for network in shown["networks"]:
        for index, true, said, _, name in network["mistakes"]:
            assert data.test.labels[index] == true != said and name.startswith(f"class{true}/")
    for index, uri in shown["thumbnails"].items():
        kind, _, text = uri.partition(",")
        assert kind == "data:image/jpeg;base64" and len(text) < 4000
        with Image.open(io.BytesIO(base64.b64decode(text))) as image:
            pixels = np.asarray(image, float).transpose(2, 0, 1)
        assert abs(pixels - data.test.images(torch.tensor([int(index)]))[0].numpy()).mean() < 20
    call(monkeypatch, "report", folder)  # which reads the images again
    assert (folder / "report/index.html").read_bytes() == first


def test_pictures_can_be_left_out(photos, monkeypatch):
    folder, _ = photos
    call(monkeypatch, "report", folder, "--no-pictures")
    shown, wrong = mistakes(folder / "report/index.html")
    assert wrong and shown["thumbnails"] == {} and shown["note"] == ""
    assert not re.search('data:image/(png|jpeg);base64,[^"`$]', (folder / "report/index.html").read_text())
    assert options.parse(["run", "--no-pictures"]).output.pictures is False
    assert options.parse(["report", "RUN"]).pictures is True


@pytest.mark.parametrize("words", [["run"], ["report", "RUN"]], ids=lambda words: words[0])
def test_other_values_of_pictures_are_refused(words, monkeypatch, capsys):
    assert "--pictures=few: write --pictures or --no-pictures" in fails(
        monkeypatch, capsys, *words, "--pictures=few", status=2
    )


def test_a_report_goes_on_without_the_pictures(photos, tmp_path, monkeypatch):
    folder = shutil.copytree(photos[0], tmp_path / "run")
    values = json.loads((folder / "run.json").read_text())
    values["settings"]["data"] = str(tmp_path / "gone")
    (folder / "run.json").write_text(json.dumps(values))
    shown, wrong = mistakes(write_report(folder))
    assert wrong and shown["thumbnails"] == {} and "gone" in shown["note"] and "cannot be shown" in shown["note"]
    values["settings"]["data"] = None
    (folder / "run.json").write_text(json.dumps(values))
    assert "Python objects" in mistakes(write_report(folder))[0]["note"]


def test_pictures_of_other_images_are_never_shown(photos, tmp_path):
    folder = shutil.copytree(photos[0], tmp_path / "run")
    for path in (folder / "answers").iterdir():
        write_answers(path, read_answers(path), "others")
    shown, _ = mistakes(write_report(folder))
    assert shown["thumbnails"] == {} and "test images have changed" in shown["note"]


def test_damaged_answers_are_named(photos, tmp_path):
    folder = shutil.copytree(photos[0], tmp_path / "run")
    path = next((folder / "answers").iterdir())
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=path.name):
        write_report(folder)


def test_a_run_from_python_shows_its_own_pictures(tmp_path):
    rng = np.random.default_rng(0)
    rows = [(rng.integers(0, 255, (8, 8), dtype=np.uint8), i % 3) for i in range(90)]
    config = oq.oqat.Config(bit_schedule=(4,), epochs=1, float_epochs=1, min_steps=3, calibration_images=16)
    run = oq.new_run(config, (rows, None, None), tmp_path / "run", preset="resnet-nano", width=0.5, resolutions=[8])
    oq.train_run(config, run)
    oq.search_run(config, run, evaluations=2)
    shown, wrong = mistakes(oq.report_run(run))
    assert wrong and set(shown["thumbnails"]) == set(map(str, wrong))
    assert all(uri.startswith("data:image/png;base64,") for uri in shown["thumbnails"].values())
    assert "Python objects" in mistakes(oq.report_run(run.folder))[0]["note"]
    assert mistakes(oq.report_run(run, pictures=False))[0]["thumbnails"] == {}


def test_answers_to_test_pictures_that_have_changed_are_measured_again(photos, tmp_path, monkeypatch):
    folder, source = shutil.copytree(photos[0], tmp_path / "run"), shutil.copytree(photos[1], tmp_path / "pictures")
    values = json.loads((folder / "run.json").read_text())
    values["settings"]["data"] = str(source)
    (folder / "run.json").write_text(json.dumps(values))
    changed = source / mistakes(write_report(folder))[0]["networks"][0]["mistakes"][0][4]
    Image.new("RGB", (40, 40), "red").save(changed)
    assert "test images have changed" in mistakes(write_report(folder))[0]["note"]
    call(monkeypatch, "search", folder, "--changed-test", "--evaluations", "6")
    shown, wrong = mistakes(write_report(folder))
    assert shown["note"] == "" and set(shown["thumbnails"]) == set(map(str, wrong))
