"""Numbers that cannot work are refused before any work, by one line with the range; so is what the machine lacks."""

import math
import os
import subprocess
import sys
import typing
from dataclasses import fields, replace

import pytest
import torch
from commands import fails, image_folder

from oncequant import cli, distributed, training_memory
from oncequant.compare import CompareOptions
from oncequant.cpu import cores
from oncequant.data import DataError, load_data
from oncequant.every_bit import AllBits
from oncequant.methods import METHODS, oqat
from oncequant.models import PRESETS
from oncequant.settings import DataOptions, Machine, ModelOptions, ProfiledModel, ProfileOptions, Shared
from oncequant.training_memory import check_memory

KINDS = [DataOptions, ModelOptions, Machine, Shared, ProfiledModel, ProfileOptions, AllBits, CompareOptions]
KINDS += [kind for method in METHODS.values() for kind in (method.Config, method.SearchOptions)]


def numbers(kind):
    """(name, values that it must refuse) of every field that holds numbers."""
    for name, hint in typing.get_type_hints(kind).items():
        parts = {hint, *typing.get_args(hint), *(p for part in typing.get_args(hint) for p in typing.get_args(part))}
        if name in {f.name for f in fields(kind)} and parts & {int, float}:
            is_many = any(typing.get_origin(part) is tuple for part in parts)
            for value in (-1e30, math.nan, 10**12, 1e30, math.inf):
                pair = kind is METHODS["dnas"].Config and name == "temperature"
                yield name, (value, value) if pair else (value,) if is_many else value


CASES = [(kind, name, value) for kind in KINDS for name, value in numbers(kind)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.__module__.split('.')[-1]}.{kind.__name__}")
def test_every_number_has_limits(kind):
    for name, value in numbers(kind):  # fields with a few values, as edge_bits, are Literals: the parser refuses others
        with pytest.raises(ValueError) as refused:
            kind(**{name: value})
        assert name in str(refused.value) and "\n" not in str(refused.value)


def test_the_walk_finds_the_numbers():
    assert len({(kind, name) for kind, name, _ in CASES}) > 90
    names = {name for _, name, _ in CASES}
    assert {"seed", "resolutions", "width", "resident_gib", "temperature", "hours", "population"} <= names


@pytest.mark.parametrize(
    "words, says",
    [
        (["--resolutions", "1000000"], "--resolutions 1000000: use 4 to 2,048"),
        (["--resolutions", "24", "0"], "--resolutions 0: use 4 to 2,048"),
        (["--seed", "99999999999999999999"], "--seed 99999999999999999999: use 0 to 4,294,967,295"),
        (["--seed", "-1"], "--seed -1: use 0"),
        (["--epochs", "-3"], "--epochs -3: use 1 to"),
        (["--width", "0"], "--width 0.0: use 0.01 to 16"),
        (["--width", "1e9"], "--width 1000000000.0: use 0.01 to 16"),
        (["--kernel-sizes", "2"], "--kernel-sizes [2]: use odd numbers from 1 to 31"),
        (["--max-train", "0"], "--max-train 0: use 2 to"),
        (["--validation-fraction", "1.5"], "--validation-fraction 1.5: use 0.0001 to 0.99"),
        (["--test-fraction", "nan"], "--test-fraction nan: use"),
        (["--resident-gib", "-1"], "--resident-gib -1.0: use 0 to"),
        (["--hours", "nan"], "--hours nan: use 0.001 to"),
        (["--batch-size", "1000000000"], "--batch-size 1000000000: use 2 to 65,536"),
        (["--lr", "inf"], "--lr inf: use 1e-09 to 10"),
        (["--lr=-inf"], "--lr -inf: use 1e-09 to 10"),
    ],
)
def test_numbers_out_of_range_name_option_value_and_range(words, says, tmp_path, monkeypatch, capsys):
    message = fails(monkeypatch, capsys, "train", "--run", tmp_path / "run", *words)
    assert message.startswith("error: ") and says in message and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words", [["run"], ["train", "qfa"], ["search", "RUN"], ["compare", "RUN"]], ids=lambda words: words[0]
)
def test_more_processes_than_cores_are_refused(words, monkeypatch, capsys):
    monkeypatch.setattr(cli, "cores", lambda: 2)
    monkeypatch.setattr(distributed, "launch", pytest.fail)
    said = fails(monkeypatch, capsys, *words, "--devices", "99", "--device", "cpu")
    assert "--devices 99: use 1 to 2, the number of CPU cores" in said
    assert "--devices 0: use 1" in fails(monkeypatch, capsys, *words, "--devices", "0")


def test_more_trainings_side_by_side_than_cores_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(cli, "cores", lambda: 3)
    assert "--jobs 50: use 1 to 3" in fails(monkeypatch, capsys, "run", "dnas", "--jobs", "50", "--device", "cpu")


def test_a_fraction_of_a_split_that_is_there_is_refused(tmp_path, monkeypatch, capsys):
    for split in ("train", "validation"):
        image_folder(tmp_path / "pictures" / split, 2, 6, 8)
    words = "train", "--data", tmp_path / "pictures", "--run", tmp_path / "run"
    said = fails(monkeypatch, capsys, *words, "--validation-fraction", "0.4")
    assert "validation_fraction 0.4: pictures has a validation split" in said and not (tmp_path / "run").exists()
    folder = str(tmp_path / "pictures")
    with pytest.raises(DataError, match="has a validation split"):
        load_data(folder, size=8, validation_fraction=0.15)
    data = load_data(folder, size=8, test_fraction=0.5)
    assert len(data.test) == len(data.train) == len(data.validation) / 2
    older = load_data(folder, size=8, validation_fraction=0.4, test_fraction=0.5, refuse_fractions=())
    assert older.fingerprint == data.fingerprint  # runs of older versions keep their images


CPU = torch.device("cpu")


def needed(monkeypatch, model, **options):
    """Bytes that training is said to need: the least limit that lets it pass."""
    low, high = 0, 2**60
    while high - low > 2**20:
        middle = (low + high) // 2
        monkeypatch.setattr(training_memory, "memory_of", lambda device, limit=middle: limit)
        try:
            check_memory(oqat.Config(**options), model, CPU, images=10_000)
            high = middle
        except ValueError:
            low = middle
    return high


def test_memory_grows_with_what_is_trained(monkeypatch):
    model = PRESETS["resnet-cifar"]
    base = needed(monkeypatch, model, batch_size=64)
    assert needed(monkeypatch, model, batch_size=1024) > 3 * base
    assert needed(monkeypatch, replace(model, resolutions=(256,)), batch_size=64) > 5 * base
    assert needed(monkeypatch, replace(model, width=8.0), batch_size=64) > 2 * base
    assert needed(monkeypatch, model, batch_size=1024, precision="bfloat16") < needed(
        monkeypatch, model, batch_size=1024
    )


@pytest.mark.parametrize("words", [["--resolutions", "2048"], ["--batch-size", "1000"], ["--width", "16"]])
def test_what_the_machine_cannot_hold_is_refused_with_how_it_is_computed(words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training_memory, "memory_of", lambda device: 700 * 2**20)
    said = fails(monkeypatch, capsys, "train", "--preset", "resnet-cifar", "--run", tmp_path / "run", *words)
    assert "more than the 0.7 GiB of this machine" in said and "images a step at" in said and "3.3 times" in said
    assert not (tmp_path / "run").exists()


def test_memory_and_cores_are_those_of_the_group_of_this_process():
    assert 0 < training_memory.memory_of(CPU) <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 1 <= cores() <= (os.cpu_count() or 1)


MEASURED = """
import resource, sys, torch
from dataclasses import replace
from oncequant.family import with_bits
from oncequant.measure import initialise_quantizers
from oncequant.models import PRESETS, build_network
from oncequant.sandwich import sandwich_step

config = replace(with_bits(PRESETS[sys.argv[1]], 4), resolutions=(int(sys.argv[2]),), edge_bits=8)
net, size = build_network(config), (64, config.image_channels, int(sys.argv[2]), int(sys.argv[2]))
images, labels = torch.randn(size).to(memory_format=torch.channels_last), torch.zeros(64, dtype=torch.long)
initialise_quantizers(net, images[:2])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for _ in range(2):
    sandwich_step(net, images, labels, [net.space.largest()])
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


@pytest.mark.slow
@pytest.mark.parametrize("preset, pixels", [("resnet-cifar", 64), ("resnet-cifar", 96), ("cifar", 32), ("cifar", 48)])
def test_the_estimate_of_memory_is_right_within_a_factor_of_two(preset, pixels, monkeypatch):
    command = [sys.executable, "-c", MEASURED, preset, str(pixels)]
    peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    model = replace(PRESETS[preset], resolutions=(pixels,))
    sizes = [needed(monkeypatch, model, batch_size=size) for size in (64, 128)]
    assert peak / 2 < sizes[1] - sizes[0] < 2 * peak
