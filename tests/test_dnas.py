"""DNAS: training the search and its samples, resuming, and choosing among them."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_dnas import FAST, MODEL

from oncequant import from_scratch
from oncequant.arch import FLOAT_PAIR as FLOAT
from oncequant.arch import SKIP
from oncequant.cost import COSTS, Budget
from oncequant.cpu import cores
from oncequant.data import load_data
from oncequant.elastic import ALONE
from oncequant.files import FileError, read_json, read_lines
from oncequant.methods import dnas
from oncequant.models import build_network
from oncequant.network import Network
from oncequant.records import Sample, read_records
from oncequant.run_folder import Run
from oncequant.search.budget import BudgetError
from oncequant.supernet_file import load_supernet
from oncequant.train import fit


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", size=8, max_train=200)


def searched(digits, tmp_path, precisions, **options):
    """Probabilities (choices, candidates) after a search."""
    cfg = dnas.Config(**{**FAST, "precisions": precisions, **options})
    torch.manual_seed(0)
    net = build_network(cfg.supernet_model(MODEL))
    from_scratch.start_alone(net, digits, 0, None, tmp_path)
    dnas.train_search(net, cfg, Run(tmp_path, MODEL, digits))
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
    dnas.train(cfg, Run(folder, MODEL, digits))
    return cfg, folder


def test_stages_and_choice(run, digits):
    cfg, folder = run
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.safetensors"))
    stages = [*dnas.stages(cfg), *(dnas.sample_stage(i) for i in range(cfg.samples))]
    assert names == sorted(f"{stage}.safetensors" for stage in stages)
    assert not list(folder.rglob("*.resume.pt"))
    family = {member.name: member for member in dnas.choose(cfg, dnas.SearchOptions(), Run(folder, MODEL, digits))}
    samples = {sample.stage: sample for sample in read_records(folder / "samples.json", Sample)}
    assert set(family) == {"float", "MA", "ME"} and len(samples) == cfg.samples
    best = max(sample.top1_validation for sample in samples.values())
    assert family["MA"].top1_validation == best
    assert family["ME"].top1_validation >= min(best, family["float"].top1_validation) - cfg.tolerance
    assert family["ME"].costs["weight_bytes"] <= family["MA"].costs["weight_bytes"]
    for member in family.values():
        net = load_supernet(folder, member.stage)
        assert net.space.size() == 1 and net.space.complete(member.arch) == net.space.largest()


def test_budgets_choose_among_the_samples(run, digits):
    cfg, folder = run
    costs = sorted(sample.costs["weight_bytes"] for sample in read_records(folder / "samples.json", Sample))
    (_, chosen) = dnas.choose(
        cfg, dnas.SearchOptions(budgets=(Budget(COSTS["weight_bytes"], costs[0]),)), Run(folder, MODEL, digits)
    )
    assert chosen.costs["weight_bytes"] == costs[0]
    with pytest.raises(BudgetError, match="none of the 2 trained networks keeps weight_bytes<=1"):
        dnas.choose(cfg, dnas.SearchOptions(budgets=(Budget(COSTS["weight_bytes"], 1.0),)), Run(folder, MODEL, digits))


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
    for module in (dnas, from_scratch):
        monkeypatch.setattr(module, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        dnas.train(cfg, Run(tmp_path, MODEL, digits))
    monkeypatch.undo()
    assert list(tmp_path.rglob("*.resume.pt"))
    dnas.train(cfg, Run(tmp_path, MODEL, digits))
    for one in (*dnas.stages(cfg), *map(dnas.sample_stage, range(cfg.samples))):
        for name, tensor in load_supernet(folder, one).state_dict().items():
            assert torch.equal(tensor, load_supernet(tmp_path, one).state_dict()[name]), (one, name)
    rows = [read_lines(where / "distribution.jsonl") for where in (folder, tmp_path)]
    assert rows[0] == rows[1]


def test_every_network_starts_from_given_weights(digits, tmp_path):
    source = build_network(MODEL)
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
    net = build_network(config)
    from_scratch.start_alone(net, digits, 0, cfg.init, tmp_path)
    assert torch.equal(net.stage2["block1"].conv1.weight, source.stage2["block1"].conv1.weight)
    wrong = replace(MODEL, stage_widths=(8, 12, 20))
    with pytest.raises(FileError, match=r"net.pth: layer3.0.conv1.weight has shape"):
        dnas.train(cfg, Run(tmp_path / "run", wrong, digits))
    assert not list((tmp_path / "run").rglob("*.safetensors"))
    with pytest.raises(FileError, match=r"net.pth: layer3.0.conv1.weight has shape"):
        dnas.check(cfg, dnas.SearchOptions(), wrong)


def test_every_network_starts_from_the_float_network_of_another_run(run, digits, tmp_path, capsys):
    _, before = run
    source = load_supernet(before, "float").state_dict()
    cfg = dnas.Config(**FAST, init=str(before))
    net = build_network(cfg.supernet_model(MODEL))
    from_scratch.start_alone(net, digits, 0, cfg.init, tmp_path)
    assert "tensors taken" in capsys.readouterr().out
    assert all(torch.equal(net.state_dict()[name], source[name]) for name in source if name.endswith("weight"))
    fewer = replace(digits, classes=digits.classes[:4])  # the last layer starts anew
    other = build_network(cfg.supernet_model(replace(MODEL, num_classes=4)))
    from_scratch.start_alone(other, fewer, 0, cfg.init, tmp_path)
    assert "these start anew: classifier" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(FileError, match="tensors fit this network"):
        dnas.check(cfg, dnas.SearchOptions(), replace(MODEL, stage_widths=(16, 24, 32)))


def test_two_workers_train_the_same_networks_as_one(digits, tmp_path):
    cfg = dnas.Config(**FAST)
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, cores() // 2))  # as many as each worker has: sums do not differ
    try:
        for jobs in (1, 2):
            dnas.train(replace(cfg, jobs=jobs), Run(tmp_path / str(jobs), MODEL, digits))
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
        dnas.train(cfg, Run(tmp_path / "run", MODEL, digits))


def test_one_precision_alone_is_trained_as_quantized(digits, tmp_path):
    cfg = dnas.Config(**FAST, precisions=(404,))
    dnas.train(cfg, Run(tmp_path, MODEL, digits))
    family = dnas.choose(cfg, dnas.SearchOptions(), Run(tmp_path, MODEL, digits))
    assert {member.name for member in family} == {"float", "MA", "ME"}
    (sample,) = read_records(tmp_path / "samples.json", Sample)
    assert sample.costs["bitops"] < family[0].costs["bitops"] / 20


def test_layers_choose_for_themselves(digits, tmp_path):
    cfg = dnas.Config(**FAST, per_layer=True)
    dnas.train(cfg, Run(tmp_path, MODEL, digits))
    assert len(read_lines(tmp_path / "distribution.jsonl")[-1]["probabilities"]) == 6


def test_workers_end_with_their_parent(tmp_path):
    code = f"""
import json, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from small_dnas import FAST, MODEL
from oncequant.data import load_data
from oncequant.methods import dnas
from oncequant.run_folder import Run
if __name__ == "__main__":
    cfg = dnas.Config(**dict(FAST, jobs=2, float_epochs=3000))
    config = cfg.supernet_model(MODEL)
    space, run = dnas.space_of(config), Path({str(tmp_path)!r})
    row = dict(step=1, steps=1, probabilities=dict.fromkeys(space.free, [1 / 7] * 7))
    (run / "distribution.jsonl").write_text(json.dumps(row) + chr(10))
    dnas.train_samples(cfg, config, space, Run(run, MODEL, load_data("digits", size=8, max_train=200)))
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


def test_training_in_bfloat16(digits, tmp_path, monkeypatch):
    """Steps of networks and of the search compute in it; what is stored and measured is float32; and it learns."""
    seen, forward = set(), Network.forward

    def spy(self, images, arch, how=ALONE):
        seen.add((self.training, how.mixture is not None, how.compute))
        return forward(self, images, arch, how)

    monkeypatch.setattr(Network, "forward", spy)
    cfg = dnas.Config(**{**FAST, "min_steps": 80, "samples": 1, "precision": "bfloat16", "precisions": (332, FLOAT)})
    dnas.train(cfg, Run(tmp_path, MODEL, digits))
    half = torch.bfloat16
    assert {(training, mixed) for training, mixed, compute in seen if compute == half} == {(True, False), (True, True)}
    assert not any(mixed for _, mixed, compute in seen if compute != half)
    net = load_supernet(tmp_path, dnas.sample_stage(0), digits.device)
    assert {tensor.dtype for tensor in net.state_dict().values()} == {torch.float32}
    assert read_json(tmp_path / "samples.json")[0]["top1_validation"] > 0.5
