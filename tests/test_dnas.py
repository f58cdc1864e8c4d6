"""DNAS: expected costs, what each part of the loss does alone, sampling, resuming, choosing, the command line."""

import json
import math
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import call, fails

from oncequant import alone
from oncequant.calibrate import initialise_quantizers
from oncequant.checkpoint import load_supernet
from oncequant.cost import COSTS, Budget
from oncequant.data import load_data
from oncequant.distributed import cores
from oncequant.files import FileError, read_json, read_lines
from oncequant.methods import dnas
from oncequant.models.resnet import FLOAT, SKIP, ResNet, ResNetConfig, resnet_space
from oncequant.search import SearchConfig
from oncequant.search.budget import BudgetError
from oncequant.train import fit

MODEL = ResNetConfig(stage_blocks=(1, 1, 1), stage_widths=(8, 12, 16), resolutions=(8,), image_channels=1, edge_bits=8)
FAST = dict(float_epochs=1, epochs=1, min_steps=12, batch_size=32, calibration_images=64, samples=2, jobs=1)


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", size=8, max_train=200)


def supernet(config=MODEL, **changes):
    torch.manual_seed(0)
    return dnas.StochasticSupernet(ResNet(replace(config, **changes)))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), projections=st.booleans(), per_layer=st.booleans())
@pytest.mark.parametrize("cost", ["weight_bytes", "bitops"])
def test_expected_cost_of_a_one_hot_mask_is_the_static_cost(cost, seed, projections, per_layer):
    precisions = dnas.PRECISIONS[cost]
    net = supernet(precisions=precisions[1:] if per_layer else precisions, projections=projections, per_layer=per_layer)
    space = net.net.space
    arch = space.sample(np.random.default_rng(seed))
    masks = {n: torch.tensor([float(v == arch[n]) for v in space.choices[n]]).double() for n in space.free}
    assert float(net.cost(masks, cost)) == pytest.approx(COSTS[cost](space.layers(arch)), rel=1e-6)


@pytest.mark.parametrize("cost", ["weight_bytes", "bitops", "macs", "params"])
def test_expected_cost_is_the_mean_over_architectures(cost):
    net = supernet(precisions=(SKIP, 104, 408, FLOAT), projections=True)
    space, rng = net.net.space, np.random.default_rng(0)
    tables = {name: rng.dirichlet(np.ones(4)) for name in space.free}
    mean = 0.0
    for codes in np.ndindex(*[4] * len(space.free)):
        share = math.prod(tables[name][code] for name, code in zip(space.free, codes))
        mean += share * COSTS[cost](space.layers(space.decode(np.array(codes))))
    expected = net.cost({name: torch.tensor(table) for name, table in tables.items()}, cost)
    assert float(expected) == pytest.approx(mean, rel=1e-9)


def test_gumbel_softmax_draws_from_the_distribution_and_sharpens():
    net = supernet(precisions=(SKIP, 132, FLOAT))
    with torch.no_grad():
        net.arch_logits[0] = torch.tensor([0.1, 0.6, 0.3]).log()
    name = net.net.space.free[0]
    drawn = torch.stack([net.masks(0.05, np.random.default_rng(i))[name] for i in range(3000)]).detach()
    frequencies = drawn.argmax(1).bincount() / 3000  # the argmax of Gumbel-softmax follows softmax(theta), at any T
    assert torch.allclose(frequencies, torch.tensor([0.1, 0.6, 0.3]), atol=0.03)
    flat = torch.stack([net.masks(20.0, np.random.default_rng(i))[name] for i in range(200)])
    assert drawn.amax(1).mean() > 0.95 and flat.amax(1).mean() < 0.45
    repeated = [net.masks(1.0, np.random.default_rng(5))[name] for _ in range(2)]
    assert torch.equal(*repeated)


def test_cost_factor_is_one_at_the_start():
    factor = dnas.cost_factor(torch.tensor(5e5), 0.9)
    assert float(factor(torch.tensor(5e5))) == pytest.approx(1)
    assert float(factor(torch.tensor(5e4))) == pytest.approx((math.log(5e4) / math.log(5e5)) ** 0.9)


def searched(digits, tmp_path, precisions, **options):
    """Probabilities (choices, candidates) after a search."""
    cfg = dnas.Config(**{**FAST, "precisions": precisions, **options})
    config = cfg.supernet_model(MODEL)
    dnas.train_search(cfg, config, resnet_space(config), digits, tmp_path)
    last = read_lines(tmp_path / "distribution.jsonl")[-1]
    assert last["step"] == last["steps"]
    return np.array(list(last["probabilities"].values()))


def test_cost_alone_picks_the_cheapest_architecture(digits, tmp_path):
    found = searched(digits, tmp_path, (SKIP, 132, 432, FLOAT), cross_entropy=False, gamma=1.0, min_steps=150)
    assert (found.argmax(1) == 0).all() and found[:, 0].min() > 0.8


def test_cross_entropy_alone_drifts_to_the_most_accurate(digits, tmp_path):
    found = searched(digits, tmp_path, (SKIP, FLOAT), gamma=0.0, min_steps=150, lr=1e-2)
    assert found[:, 1].mean() > 0.7


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dnas")
    cfg = dnas.Config(**FAST)
    dnas.train(cfg, MODEL, digits, folder)
    return cfg, folder


def test_stages_and_choice(run, digits):
    cfg, folder = run
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.safetensors"))
    stages = [*cfg.stages, *(dnas.sample_stage(i) for i in range(cfg.samples))]
    assert names == sorted(f"{stage}.safetensors" for stage in stages)
    assert not list(folder.rglob("*.resume.pt"))
    family = {entry["name"]: entry for entry in dnas.search(cfg, SearchConfig(), digits, folder)}
    samples = {row["stage"]: row for row in read_json(folder / "samples.json")}
    assert set(family) == {"float", "MA", "ME"} and len(samples) == cfg.samples
    best = max(row["top1_validation"] for row in samples.values())
    assert family["MA"]["top1_validation"] == best
    assert family["ME"]["top1_validation"] >= min(best, family["float"]["top1_validation"]) - cfg.tolerance
    assert family["ME"]["costs"]["weight_bytes"] <= family["MA"]["costs"]["weight_bytes"]
    for entry in family.values():
        net = load_supernet(folder, entry["stage"])
        assert net.space.size() == 1 and net.space.complete(entry["arch"]) == net.space.largest()


def test_budgets_choose_among_the_samples(run, digits):
    cfg, folder = run
    costs = sorted(row["costs"]["weight_bytes"] for row in read_json(folder / "samples.json"))
    (_, chosen) = dnas.search(cfg, SearchConfig(budgets=(Budget("weight_bytes", costs[0]),)), digits, folder)
    assert chosen["costs"]["weight_bytes"] == costs[0]
    with pytest.raises(BudgetError, match="none of the 2 trained networks keeps weight_bytes<=1"):
        dnas.search(cfg, SearchConfig(budgets=(Budget("weight_bytes", 1.0),)), digits, folder)


def test_most_accurate_and_most_efficient():
    rows = [
        dict(top1_validation=top1, costs=dict(weight_bytes=cost))
        for top1, cost in ((0.90, 100), (0.92, 90), (0.918, 40), (0.80, 10))
    ]
    found = dnas.most_accurate_and_efficient(rows, 0.93, dnas.Config())
    assert found["MA"] is rows[1] and found["ME"] is rows[2]
    found = dnas.most_accurate_and_efficient(rows, 0.79, dnas.Config())
    assert found["ME"] is rows[3]  # it holds what the float network reaches
    found = dnas.most_accurate_and_efficient(rows, 0.9235, dnas.Config())
    assert found["ME"] is rows[1]  # the third is near to the second, but too far from float


@pytest.mark.parametrize("stage", ["search", "samples/0/network"])
def test_a_killed_search_goes_on_bit_for_bit(stage, run, digits, tmp_path, monkeypatch):
    cfg, folder = run
    cfg = replace(cfg, checkpoint_seconds=0.0)
    steps, original = 0, fit

    def killed(net, step, *arguments, stage, **options):
        def step_until(*batch):
            nonlocal steps
            steps += stage == wanted
            if stage == wanted and steps == 8:
                raise KeyboardInterrupt
            return step(*batch)

        original(net, step_until, *arguments, stage=stage, **options)

    wanted = stage.rpartition("/")[2]
    for module in (dnas, alone):
        monkeypatch.setattr(module, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        dnas.train(cfg, MODEL, digits, tmp_path)
    monkeypatch.undo()
    assert list(tmp_path.rglob("*.resume.pt"))
    dnas.train(cfg, MODEL, digits, tmp_path)
    for one in (*cfg.stages, *map(dnas.sample_stage, range(cfg.samples))):
        for name, tensor in load_supernet(folder, one).state_dict().items():
            assert torch.equal(tensor, load_supernet(tmp_path, one).state_dict()[name]), (one, name)
    rows = [read_lines(where / "distribution.jsonl") for where in (folder, tmp_path)]
    assert rows[0] == rows[1]


def test_every_network_starts_from_given_weights(digits, tmp_path):
    source = ResNet(MODEL)
    names = {"stem": "conv1", "stem.norm": "bn1", "classifier": "fc"}
    for s in (1, 2, 3):
        for i in (1, 2):
            names[f"stage{s}.block1.conv{i}"] = f"layer{s}.0.conv{i}"
            names[f"stage{s}.block1.conv{i}.norm"] = f"layer{s}.0.bn{i}"
    state = {}
    for name, tensor in source.state_dict().items():
        module, _, part = name.rpartition(".")
        state[f"{names[module]}.{part}"] = tensor.flatten(1) if name == "classifier.weight" else tensor
    torch.save(state, tmp_path / "net.pth")
    cfg = dnas.Config(**FAST, init=str(tmp_path / "net.pth"))
    config = cfg.supernet_model(MODEL)
    net = alone.new_network(config, resnet_space(config), digits, 0, cfg.init)
    assert torch.equal(net.stage2["block1"].conv1.weight, source.stage2["block1"].conv1.weight)
    wrong = replace(MODEL, stage_widths=(8, 12, 20))
    with pytest.raises(FileError, match=r"net.pth: layer3.0.conv1.weight has shape"):
        dnas.train(cfg, wrong, digits, tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.safetensors"))
    with pytest.raises(FileError, match=r"net.pth: layer3.0.conv1.weight has shape"):
        dnas.check_budgets(cfg, SearchConfig(), wrong)


def test_two_workers_train_the_same_networks_as_one(digits, tmp_path):
    cfg = dnas.Config(**FAST)
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, cores() // 2))  # as many as each worker has: sums do not differ
    try:
        for jobs in (1, 2):
            dnas.train(replace(cfg, jobs=jobs), MODEL, digits, tmp_path / str(jobs))
    finally:
        torch.set_num_threads(threads)
    for stage in map(dnas.sample_stage, range(cfg.samples)):
        one, two = (load_supernet(tmp_path / jobs, stage).state_dict() for jobs in "12")
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_samples_of_another_search_are_not_taken(run, digits, tmp_path):
    cfg, folder = run
    shutil.copytree(folder, tmp_path / "run")
    path = tmp_path / "run" / "distribution.jsonl"
    rows = read_lines(path)
    for row in rows:
        row["probabilities"] = {name: [0.0] * 6 + [1.0] for name in row["probabilities"]}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(FileError, match="samples/0/network.safetensors is a network of another architecture"):
        dnas.train(cfg, MODEL, digits, tmp_path / "run")


def test_one_precision_alone_is_trained_as_quantized(digits, tmp_path):
    cfg = dnas.Config(**FAST, precisions=(404,))
    dnas.train(cfg, MODEL, digits, tmp_path)
    family = dnas.search(cfg, SearchConfig(), digits, tmp_path)
    assert {entry["name"] for entry in family} == {"float", "MA", "ME"}
    (sample,) = read_json(tmp_path / "samples.json")
    assert sample["costs"]["bitops"] < family[0]["costs"]["bitops"] / 20


def test_layers_choose_for_themselves(digits, tmp_path):
    cfg = dnas.Config(**FAST, per_layer=True)
    dnas.train(cfg, MODEL, digits, tmp_path)
    assert len(read_lines(tmp_path / "distribution.jsonl")[-1]["probabilities"]) == 6


def test_budgets_are_held_against_the_cheapest_network():
    cfg = dnas.Config(precisions=(132, 404))  # 4 x 4 bits are fewer bit operations than 1 x 32
    space = resnet_space(cfg.supernet_model(MODEL))
    archs = [space.decode(np.array(codes)) for codes in np.ndindex(2, 2, 2)]
    for cost in ("bitops", "weight_bytes"):
        least = min(COSTS[cost](space.layers(arch)) for arch in archs)
        assert COSTS[cost](space.layers(dnas.cheapest(space, cost))) == least
        dnas.check_budgets(cfg, SearchConfig(budgets=(Budget(cost, least),)), MODEL)
        with pytest.raises(BudgetError, match=f"the least {cost}"):
            dnas.check_budgets(cfg, SearchConfig(budgets=(Budget(cost, 0.99 * least),)), MODEL)


def test_workers_end_with_their_parent(tmp_path):
    code = f"""
import json, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_dnas import FAST, MODEL
from oncequant.data import load_data
from oncequant.methods import dnas
if __name__ == "__main__":
    cfg = dnas.Config(**dict(FAST, jobs=2, float_epochs=3000))
    config = cfg.supernet_model(MODEL)
    space, run = dnas.resnet_space(config), Path({str(tmp_path)!r})
    row = dict(step=1, steps=1, probabilities=dict.fromkeys(space.free, [1 / 7] * 7))
    (run / "distribution.jsonl").write_text(json.dumps(row) + chr(10))
    dnas.train_samples(cfg, config, space, load_data("digits", size=8, max_train=200), run)
"""
    (tmp_path / "main.py").write_text(code)
    process = subprocess.Popen([sys.executable, str(tmp_path / "main.py")])
    try:
        deadline = time.monotonic() + 120
        while len(list(tmp_path.glob("samples/*/metrics.jsonl"))) < 2:  # both are at work
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait()
    time.sleep(2)
    sizes = {path: path.stat().st_size for path in tmp_path.rglob("metrics.jsonl")}
    time.sleep(3)
    assert sizes == {path: path.stat().st_size for path in tmp_path.rglob("metrics.jsonl")}


def test_samples_are_different_and_follow_the_distribution(tmp_path):
    cfg = dnas.Config(samples=5)
    space = resnet_space(cfg.supernet_model(MODEL))
    sure = np.full((3, 7), 0.02)
    sure[:, 4] = 0.88
    rows = [
        dict(step=step, steps=10, probabilities=dict(zip(space.free, (table / table.sum(1, keepdims=True)).tolist())))
        for step, table in ((0, np.ones((3, 7))), (6, sure), (10, sure))
    ]
    path = tmp_path / "distribution.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    archs = dnas.sampled_archs(cfg, space, path)
    assert len(set(archs)) == 5 and all(archs[-1][name] == 432 for name in space.free)
    assert np.mean([arch[name] == 432 for arch in archs for name in space.free]) > 0.5
    path.write_text(json.dumps(dict(step=1, steps=1, probabilities={"other": [1.0]})) + "\n")
    with pytest.raises(FileError, match="does not belong to this search"):
        dnas.sampled_archs(cfg, space, path)


def test_training_in_bfloat16(digits, tmp_path, monkeypatch):
    """Steps of networks and of the search compute in it; what is stored and measured is float32; and it learns."""
    seen, forward = set(), ResNet.forward

    def spy(self, images, arch, shared=None, compute=None, mixture=None):
        seen.add((self.training, mixture is not None, compute))
        return forward(self, images, arch, shared, compute, mixture)

    monkeypatch.setattr(ResNet, "forward", spy)
    cfg = dnas.Config(**{**FAST, "min_steps": 80, "samples": 1, "precision": "bfloat16", "precisions": (332, FLOAT)})
    dnas.train(cfg, MODEL, digits, tmp_path)
    half = torch.bfloat16
    assert {(training, mixed) for training, mixed, compute in seen if compute == half} == {(True, False), (True, True)}
    assert not any(mixed for _, mixed, compute in seen if compute != half)
    net = load_supernet(tmp_path, dnas.sample_stage(0), digits.device)
    assert {tensor.dtype for tensor in net.state_dict().values()} == {torch.float32}
    assert read_json(tmp_path / "samples.json")[0]["top1_validation"] > 0.5


def test_impossible_options_are_refused():
    for options, text in (
        (dict(samples=0), "samples 0"),
        (dict(arch_share=0.6), "arch_share"),
        (dict(sync_batch_norm=True), "sync_batch_norm"),
        (dict(quantized_lr=1e-3), "quantized_lr"),
        (dict(temperature=(5.0, 0.0)), "temperature"),
        (dict(gamma=-1.0), "gamma"),
        (dict(gamma=0.0, cross_entropy=False), "gamma"),
        (dict(precisions=(432, 9)), "precisions: 9"),
        (dict(per_layer=True, precisions=(0, 432)), "per layer"),
        (dict(jobs=0), "jobs"),
        (dict(checkpoint_activations=True), "checkpoint_activations"),
    ):
        with pytest.raises(ValueError, match=text):
            dnas.Config(**options)


def test_pact_clip_levels_are_penalised():
    net = ResNet(replace(MODEL, precisions=(404, FLOAT)))
    initialise_quantizers(net, torch.randn(8, 1, 8, 8))
    clips = alone.pact_clips(net)
    assert len(clips) == 6 + 2  # three blocks of two, and the edges
    assert alone.clip_penalty(clips, 0.5).item() == pytest.approx(
        0.5 * sum(clip.square().sum().item() for clip in clips)
    )


SMALL = "--max-train 200 --min-steps 12 --float-epochs 1 --epochs 1 --dnas.samples 2 --dnas.jobs 1".split()


def test_command_line(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    call(monkeypatch, "run", "--method", "dnas", "--run", folder, "--dnas.cost", "bitops", *SMALL)
    rows = {row["name"]: row for row in read_json(folder / "exports.json")}
    assert set(rows) == {"float", "MA", "ME"} and not any(row["problems"] for row in rows.values())
    assert (folder / "report" / "distribution.png").exists()
    assert '"pictures":{"distribution":' in (folder / "report" / "index.html").read_text()
    page = (folder / "report" / "index.html").read_text()
    assert '"candidates":["W1 A4","W2 A4","W3 A3","W4 A4","W8 A8","float"]' in page
    capsys.readouterr()
    call(monkeypatch, "info", folder)
    assert "stages trained: float, search of float, search" in capsys.readouterr().out
    call(monkeypatch, "evaluate", folder, "ME")
    evaluated = json.loads(capsys.readouterr().out)
    family = {entry["name"]: entry for entry in read_json(folder / "family.json")}
    assert evaluated["top1"] == family["ME"]["top1_validation"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("train --method dnas --preset nano", "does not fit --method dnas"),
        ("train --preset resnet20", "does not fit --method oqat"),
        ("train --method dnas --depths 2", "--depths is not an option of residual networks"),
        ("train --method oqat --dnas.gamma 1", "--dnas is not an option of --method oqat"),
        ("run --method dnas --evaluations 5", "DNAS has no search after training"),
        ("run --method dnas --budget weight_bytes<=100", "cannot be met"),
        ("run --method dnas --dnas.precisions 101 3232", "files hold inputs of 2 bits and more"),
        ("train --method dnas --dnas.init nowhere.pth", "nowhere.pth does not exist"),
    ],
)
def test_what_cannot_work_is_refused_before_training(arguments, text, tmp_path, monkeypatch, capsys):
    assert text in fails(monkeypatch, capsys, *arguments.split(), "--run", tmp_path)
    assert not list(tmp_path.iterdir())  # so that the mended command finds no other run there
