"""Paths that users write: `~` and variables mean what they do in a shell, for every option; empty text is refused."""

import getpass
from pathlib import Path

import pytest
from commands import DIGITS_TRAINING, call, fails, image_folder

from oncequant import options
from oncequant.files import user_path
from oncequant.models import PRESETS, space_of


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The folder that `~`, `$HERE` and `${HERE}` stand for; commands run elsewhere."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    for name in ("HOME", "HERE"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.delenv("NOWHERE", raising=False)
    monkeypatch.chdir(elsewhere)
    return home


@pytest.mark.parametrize("short", ["~", "$HERE", "${HERE}"])
def test_every_path_option_is_expanded(short, home):
    inside = f"{short}/x"
    wanted = home / "x"
    training = options.parse(["train", "--data", inside, f"--run={inside}"])
    assert training.data.data == str(wanted) and training.data.run == wanted
    assert options.parse(["run", "dnas", "--init", inside]).train.training.init == str(wanted)
    found = options.parse(["evaluate", inside, f"{inside}.json", f"--data={inside}"])
    assert (found.source.run, found.source.data) == (wanted, str(wanted))
    assert found.evaluate.arch == f"{wanted}.json"
    found = options.parse(["export", inside, inside, "2bit-M", f"{inside}.json"])
    assert found.source.run == wanted and found.export.names == (str(wanted), "2bit-M", f"{wanted}.json")
    for command in ("search", "compare"):
        assert options.parse([command, inside]).source.run == wanted
    assert options.parse(["report", inside]).runs == (options.parse(["info", inside]).run,) == (wanted,)
    assert options.parse(["profile", "--out", inside]).profile.out == wanted
    assert options.parse(["cost", inside]).archs == str(wanted)


def test_tables_of_costs_and_architectures_are_found_at_home(home, monkeypatch, capsys):
    (home / "archs.jsonl").write_text(space_of(PRESETS["resnet-nano"]).smallest().to_json() + "\n")
    (home / "phone.csv").write_text("role,us\nstem,1\n")
    call(monkeypatch, "cost", "--preset", "resnet-nano", "~/archs.jsonl")
    assert '"macs"' in capsys.readouterr().out
    assert f"{home}/phone.csv: its header" in fails(monkeypatch, capsys, "train", "--costs", "~/phone.csv")


def test_the_guard_against_runs_among_images_knows_where_home_is(home, monkeypatch, capsys):
    image_folder(home / "pictures", 2, 4, 8)
    for data, run in [
        ("~/pictures", "--run=~/pictures/run"),
        ("$HERE/pictures", f"--run={home}/pictures/class0/run"),
        (f"{home}/pictures", "--run=${HERE}/pictures"),
        ("~/pictures", "--run=$HERE/pictures/class1"),
    ]:
        said = fails(monkeypatch, capsys, "train", "--data", data, run, *DIGITS_TRAINING)
        assert "would lie among the images" in said, (data, run)
    assert not list(Path().iterdir())  # no folder that is called ~ or $HERE


@pytest.mark.parametrize(
    "words, says",
    [
        (["train", "--run=$NOWHERE/x"], "--run $NOWHERE/x: there is no environment variable NOWHERE"),
        (["train", "--data", "${NOWHERE}"], "--data ${NOWHERE}: there is no environment variable NOWHERE"),
        (["report", "~nobody_of_this_name/run"], "RUN ~nobody_of_this_name/run: there is no user"),
        (["profile", "--out", "a/$NOWHERE.csv"], "--out a/$NOWHERE.csv: there is no environment variable"),
        (["search", "RUN", "--costs", "$NOWHERE"], "--costs $NOWHERE"),
    ],
)
def test_what_stands_for_nothing_is_one_line(words, says, home, monkeypatch, capsys):
    assert says in fails(monkeypatch, capsys, *words, status=2)


@pytest.mark.parametrize(
    "words, named",
    [
        (["train", "--data", ""], "--data"),
        (["run", "--run="], "--run"),
        (["export", "RUN", ""], "argument 2"),
        (["info", " "], "argument 1"),
        (["search", "RUN", "--budget", ""], "--budget"),
        (["export", "RUN", "--formats", "onnx", ""], "--formats"),
        (["profile", "--out", ""], "--out"),
        (["cost", "", "--bits", "4"], "argument 1"),
    ],
)
def test_empty_text_is_refused(words, named, monkeypatch, capsys):
    message = fails(monkeypatch, capsys, *words, status=2)
    assert f"error: {named}" in message and "empty" in message


@pytest.mark.parametrize("name", ["digits", "ylecun/mnist", "cifar10", "./pictures", "a b/c~", "price $5"])
def test_names_and_ordinary_paths_stay_as_they_are(name, home):
    assert options.parse(["train", "--data", name]).data.data == name


def test_user_paths_from_python(home, tmp_path):
    assert user_path("~") == home and user_path(Path("$HERE") / "x") == home / "x"
    assert user_path(f"~{getpass.getuser()}/x").is_absolute()
    (Path() / "a $NOWHERE").mkdir()
    assert user_path("a $NOWHERE") == Path("a $NOWHERE")  # it is there
    with pytest.raises(ValueError, match="empty"):
        user_path(" ")
