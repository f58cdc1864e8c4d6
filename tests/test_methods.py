"""The contract of `Method`, for every entry of `METHODS` and each family that it trains; a new one joins QUICK."""

import dataclasses
import json

import pytest
import torch
from small_training import Interrupted
from test_families import SMALL

from oncequant import train
from oncequant.cost import COSTS, Budget
from oncequant.data import load_data
from oncequant.measure import Judge
from oncequant.methods import METHODS, method_of
from oncequant.models import FAMILIES, PRESETS, family_of
from oncequant.records import Member, read_records
from oncequant.run_folder import Run
from oncequant.search.budget import BudgetError
from oncequant.settings import ModelOptions, suited
from oncequant.supernet_file import load_supernet
from oncequant.tensor_files import read_tensors

COMMON = dict(epochs=1, float_epochs=1, min_steps=3, batch_size=32, calibration_images=64, checkpoint_seconds=0)
QUICK = {  # options of training and of choosing that are done in seconds
    "oqat": (dict(bit_schedule=(4, 2), random_subnets=1), dict(evaluations=6)),
    "qfa": (dict(mixed_subnets=1), dict(evaluations=30, population=8, generations=2, front_members=1)),
    "dnas": (dict(samples=2, jobs=1), {}),
}
assert QUICK.keys() == METHODS.keys(), "add options of the new method to QUICK"
CASES = [(name, family) for name, method in METHODS.items() for family in method.families]
every_method = pytest.mark.parametrize("name", METHODS)


def parts(name, family, folder):
    """Config, SearchOptions and a run without training of a method on small images."""
    method, (training, choosing) = METHODS[name], QUICK[name]
    plain = FAMILIES[family].Config()
    small = SMALL[family]
    bits = {f.name: getattr(plain, f.name) for f in dataclasses.fields(plain) if f.name in
            ("weight_bits", "act_bits", "steps_per_bits", "precisions")}  # fmt: skip
    model = dataclasses.replace(small, num_classes=10, resolutions=(8,), **bits)
    data = load_data("digits", size=8, seed=0, max_train=128)
    return method.Config(**COMMON, **training), method.SearchOptions(**choosing), Run(folder, model, data)


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def trained(request, tmp_path_factory):
    """(method's name, Config, SearchOptions, run) of a method that has trained all its stages."""
    cfg, options, run = parts(*request.param, tmp_path_factory.mktemp("-".join(request.param)))
    METHODS[request.param[0]].train(cfg, run)
    return request.param[0], cfg, options, run


def stages_in(folder):
    return {str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.safetensors") if p.stem != "predictor"}


@every_method
def test_defaults_are_frozen_values_that_files_can_hold(name):
    method = METHODS[name]
    cfg, options = method.Config(), method.SearchOptions()
    assert method_of(cfg) == name and options.budgets == ()
    for value in (cfg, options):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, dataclasses.fields(value)[0].name, None)
    again = json.loads(json.dumps(cfg.to_json()))
    assert again.keys() == {field.name for field in dataclasses.fields(cfg)}
    stages = method.stages(cfg)
    assert len(set(stages)) == len(stages) and stages[0] == "float"


@every_method
@pytest.mark.parametrize("pixels", [8, 28, 32, 96, 224, 1000])
def test_presets_are_of_families_that_the_method_trains(name, pixels):
    assert family_of(PRESETS[METHODS[name].preset(pixels)]) in METHODS[name].families


@pytest.mark.parametrize("name, family", CASES)
def test_budgets_below_every_network_are_refused_before_training(name, family, tmp_path):
    cfg, options, run = parts(name, family, tmp_path)
    METHODS[name].check(cfg, options, run.model)
    for cost, budget in (("bitops", 10), ("weight_bytes", 1)):
        impossible = dataclasses.replace(options, budgets=(Budget(COSTS[cost], budget),))
        with pytest.raises(BudgetError, match=cost):
            METHODS[name].check(cfg, impossible, run.model)
    assert not list(tmp_path.iterdir())


def test_every_stage_has_a_network_and_nothing_is_trained_twice(trained):
    name, cfg, _, run = trained
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*.safetensors")}
    assert stages_in(run.folder) >= set(METHODS[name].stages(cfg))
    for stage in stages_in(run.folder):
        net = load_supernet(run.folder, stage)
        assert family_of(net.config) == family_of(run.model) and net.config.num_classes == 10
    assert not list(run.folder.rglob("*.resume.pt"))
    METHODS[name].train(cfg, run)
    assert before == {path: path.stat().st_mtime_ns for path in run.folder.rglob("*.safetensors")}


@pytest.mark.parametrize("name, family", [(name, METHODS[name].families[-1]) for name in METHODS])
def test_a_killed_training_goes_on_to_the_same_weights(name, family, tmp_path, monkeypatch):
    save, saved = train._save_checkpoint, []

    def killed(*arguments):
        save(*arguments)
        saved.append(1)
        if len(saved) % 3 == 0:
            raise Interrupted

    cfg, _, run = parts(name, family, tmp_path / "whole")
    METHODS[name].train(cfg, run)
    often = dataclasses.replace(run, folder=tmp_path / "often")
    monkeypatch.setattr(train, "_save_checkpoint", killed)
    kills = 0
    while kills < 100:
        try:
            METHODS[name].train(cfg, often)
            break
        except Interrupted:
            kills += 1
    assert 2 <= kills < 100 and stages_in(often.folder) == stages_in(run.folder)
    for stage in stages_in(run.folder):
        first, second = (read_tensors(folder / f"{stage}.safetensors")[0] for folder in (run.folder, often.folder))
        torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)  # ranges of no subnet are NaN


def test_members_are_subnets_of_the_stages_and_as_accurate_as_said(trained):
    name, cfg, options, run = trained
    members = METHODS[name].choose(cfg, options, run)
    assert members == read_records(run.folder / "family.json", Member)
    assert len({member.name for member in members}) == len(members) >= 2
    judge = Judge(run.data, cfg.calibration(run.data))
    for member in members:
        net = load_supernet(run.folder, member.stage)
        arch = net.space.complete(member.arch)
        assert judge.test(net, arch).accuracy.top1 == pytest.approx(member.top1_test, abs=1e-9), member.name
        layers = net.space.layers(arch)
        assert all(member.costs[cost] == COSTS[cost](layers) for cost in COSTS if cost in member.costs)
        assert {"bitops", "weight_bytes", "params", "macs"} <= member.costs.keys()
    measured = (run.folder / "measurements.jsonl").read_text()
    assert METHODS[name].choose(cfg, options, run) == members
    assert (run.folder / "measurements.jsonl").read_text() == measured, "measured twice"


def test_budgets_are_kept_or_refused(trained):
    name, cfg, options, run = trained
    members = METHODS[name].choose(cfg, options, run)
    family = (run.folder / "family.json").read_text()
    budget = Budget(COSTS["weight_bytes"], sorted(member.costs["weight_bytes"] for member in members)[-2])
    within = METHODS[name].choose(cfg, dataclasses.replace(options, budgets=(budget,)), run)
    chosen = [member for member in within if member.stage != "float"]
    assert chosen and all(member.costs["weight_bytes"] <= budget.limit for member in chosen)
    assert {m.name for m in read_records(run.folder / "family.json", Member)} >= {m.name for m in members}
    (run.folder / "family.json").write_text(family)
    with pytest.raises(BudgetError, match="weight_bytes<=1"):
        METHODS[name].choose(cfg, dataclasses.replace(options, budgets=(Budget(COSTS["weight_bytes"], 1),)), run)
    assert (run.folder / "family.json").read_text() == family


@pytest.mark.parametrize(
    ("pixels", "preset", "resolutions"),
    [
        (8, "resnet-nano", None), (20, "resnet-nano", None), (21, "resnet-cifar", None), (40, "resnet-cifar", None),
        (41, "resnet-64", (40,)), (64, "resnet-64", (40, 48, 56, 64)), (73, "resnet-photo", (64, 80)),
        (100, "resnet-photo", (64, 80, 96)), (136, "resnet-photo", (64, 80, 96, 112, 128)),
        (150, "resnet-224", (128, 160)), (4000, "resnet-224", (128, 160, 192, 224)),
    ],
)  # fmt: skip
def test_images_of_every_size_are_seen_as_large_as_they_are(pixels, preset, resolutions):
    found = suited("oqat", ModelOptions(), pixels)
    assert (found.preset, found.resolutions) == (preset, resolutions)
    assert suited("qfa", ModelOptions(resolutions=(32,)), pixels).resolutions == (32,)  # what is given stays
    assert suited("oqat", ModelOptions("cifar"), pixels).resolutions is None
