"""Every help fits a screen and reads well, every option has its place in one of them, and words are read as written."""

import re
import subprocess
import sys

import pytest
from commands import call, fails

from oncequant import cli, options
from oncequant.methods import METHODS
from oncequant.options import COMMANDS
from oncequant.parser import Groups, help_texts

FORBIDDEN = re.compile(r"[{}╭│]|None|True|False|\[\w+ \[|default \)")
ARGUMENT = re.compile(r"^  \[?(--[a-z-]+|[A-Z]+)\b.*")
COMMANDS_AND_METHODS = [[name] for name in COMMANDS if name not in ("run", "train", "predict")]
COMMANDS_AND_METHODS += [[name, method] for name in ("run", "train") for method in METHODS]


def page(capsys, *words):
    with pytest.raises(SystemExit) as stopped:
        options.parse(words)
    assert stopped.value.code == 0
    return capsys.readouterr().out


def pages(capsys, command):
    """The help of a command, and those that it names."""
    first = page(capsys, *command, "--help")
    return [first, *(page(capsys, *command, topic) for topic in re.findall(r"--help-\w+", first))]


@pytest.mark.parametrize("command", [[], ["predict"], *COMMANDS_AND_METHODS], ids=" ".join)
def test_helps_fit_a_screen(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for text in pages(capsys, command):
        lines = text.splitlines()
        assert len(lines) < 60 and max(map(len, lines)) <= 80 and lines[0].startswith("usage: oncequant")
        assert not FORBIDDEN.search(text), FORBIDDEN.search(text)
        columns = {line.index(line.split("  ", 2)[2].strip()) for line in lines if re.match("  --[a-z-]+  +[^ ]", line)}
        assert len(columns) <= 1, columns  # texts of all options begin in the same column


@pytest.mark.parametrize("command", COMMANDS_AND_METHODS, ids=" ".join)
def test_every_option_is_in_one_help(command, capsys, monkeypatch):
    seen: list = []
    parse = Groups.parse
    monkeypatch.setattr(Groups, "parse", lambda groups, words: (seen.append(groups), parse(groups, words))[1])
    shown = [match[1] for text in pages(capsys, command) for match in map(ARGUMENT.match, text.splitlines()) if match]
    shown = [name for name in shown if not name.startswith("--no-")]
    assert sorted(shown) == sorted(option.name for option in seen[0].options())
    for group, kind in seen[0].kinds.items():  # and none of the fields is forgotten
        fields = set(help_texts(kind)) & set(kind.__dataclass_fields__) - set(seen[0].hidden.get(group, ()))
        assert fields <= {option.field for option in seen[0].options()}


def test_the_overview_has_every_command_in_the_order_of_use(capsys):
    assert re.findall(r"^  (\w+)  ", page(capsys, "--help"), re.MULTILINE) == list(COMMANDS)
    assert page(capsys, "-h") == page(capsys, "--help")


def test_help_comes_wherever_it_is_asked_for_and_wrong_topics_are_named(capsys, monkeypatch):
    assert page(capsys, "run", "--epochs", "x", "-h") == page(capsys, "run", "oqat", "--help")
    assert "--help-training" in fails(monkeypatch, capsys, "run", "--help-everything", status=2)
    monkeypatch.setenv("COLUMNS", "50")
    assert max(map(len, page(capsys, "search", "--help").splitlines())) <= 50


def test_the_version_is_said_without_waiting():
    code = "import sys; sys.argv[1:] = ['--version']; from oncequant.__main__ import main; main()"
    code += "; assert 'torch' not in sys.modules"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"oncequant (\d+\.\d+.*|unknown)\n", said)


@pytest.mark.parametrize(
    "words, flip",
    [
        ([], None), (["--flip"], True), (["--no-flip"], False), (["--flip", "False"], False), (["--flip=no"], False),
        (["--flip", "--epochs", "3"], True), (["--flip", "True"], True), (["--no-flip", "--seed", "1"], False),
    ],
)  # fmt: skip
def test_yes_and_no_can_be_written_in_several_ways(words, flip):
    assert options.parse(["train", *words]).data.flip is flip
    assert options.parse(["train", "--no-signed-activations"]).model.signed_activations is False
    assert options.parse(["train", "--float_sandwich"]).training.float_sandwich is True
    assert options.parse(["train", "dnas", "--weight-quantizer", "lsq"]).training.weight_quantizer == "lsq"


@pytest.mark.parametrize(
    "words, says",
    [
        (["runn"], "there is no command 'runn'; is it run?"),
        (["run", "okat"], "there is no method 'okat'"),
        (["run", "--epoch", "3"], "knows no --epoch; is it --epochs"),
        (["run", "--flip=maybe"], "--flip=maybe: write --flip or --no-flip"),
        (["run", "--seed", "1e20"], "--seed 1e20: use a whole number"),
        (["run", "--resolutions", "8", "x"], "--resolutions x: use a whole number"),
        (["run", "--lr", "fast"], "--lr fast: use a number"),
        (["run", "--preset", "huge"], "--preset huge: use auto, imagenet"),
        (["run", "--edge-bits", "4"], "--edge-bits 4: use 8, 32"),
        (["run", "--epochs"], "--epochs"),
        (["export"], "RUN is missing"),
        (["export", "RUN", "--formats", "onnx", "hex"], "--formats hex: use onnx, package, c"),
        (["run", "--formats", "hex"], "--formats hex: use onnx, package, c"),
        (["info", "RUN", "more"], "knows no more"),
    ],
)
def test_wrong_words_are_one_line(words, says, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        call(monkeypatch, *words)
    message = capsys.readouterr().err
    assert stopped.value.code == 2 and message.startswith("error: ") and message.count("\n") == 1 and says in message


def test_without_a_command_the_overview_is_shown(monkeypatch, capsys):
    monkeypatch.setattr(cli, "HANDLERS", {})
    assert "Commands:" in fails(monkeypatch, capsys, status=2)
