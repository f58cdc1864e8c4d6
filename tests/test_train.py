"""Training: reproducible, resumed bit for bit after a kill, with gradients that are the average of subnets."""

import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_training import CONFIG, TINY, Interrupted, assert_equal_runs, digits, small_fit, supernet

from oncequant.data import load_data
from oncequant.elastic import Pass, SharedWeights
from oncequant.files import read_lines
from oncequant.measure import initialise_quantizers
from oncequant.methods import oqat, qfa
from oncequant.models import build_network
from oncequant.models.mobilenet_v3 import PRESETS
from oncequant.run_folder import Run
from oncequant.sandwich import sandwich_step
from oncequant.schedule import Schedule, make_optimizers
from oncequant.tensor_files import read_tensors
from oncequant.train import fit

SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from small_training import CONFIG, TINY, digits
from oncequant.methods import oqat
from oncequant.run_folder import Run
oqat.train(CONFIG, Run(Path(sys.argv[1]), TINY, digits()))
"""


def test_training_is_reproducible(trained, tmp_path):
    oqat.train(CONFIG, Run(tmp_path, TINY, digits()))
    assert_equal_runs(trained, tmp_path)


def test_sigkill_at_random_times_changes_nothing(trained, tmp_path, request):
    """Kill the training process several times; the resumed run ends with the same bits and the same log."""
    command = [sys.executable, "-c", SCRIPT.format(tests=str(request.path.parent)), str(tmp_path)]
    rng = random.Random(0)
    log, kills = tmp_path / "metrics.jsonl", 0

    def size():
        return log.stat().st_size if log.exists() else 0

    for _ in range(2):
        before = size()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while size() <= before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)  # until it trains
        try:
            process.wait(timeout=rng.uniform(0.0, 0.6))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=240)
    assert kills > 0
    assert_equal_runs(trained, tmp_path)
    logs = [read_lines(folder / "metrics.jsonl") for folder in (tmp_path, trained)]
    killed, calm = ([{k: v for k, v in row.items() if k != "time_s"} for row in rows] for rows in logs)
    assert killed == calm
    assert not list(tmp_path.glob("*.resume.pt"))


@pytest.mark.parametrize("at", [1, 4, 6])
def test_interruption_inside_a_stage_resumes_bit_identically(tmp_path, at):
    data = digits()
    schedule = Schedule(steps=8, batch_size=32, lr=1e-2)

    def run(folder, stop_at=None):
        torch.manual_seed(0)
        net = build_network(replace(TINY, dropout=0.5)).to(memory_format=torch.channels_last)
        calls = 0

        def step(images, labels, rng, done):
            nonlocal calls
            calls += 1
            if stop_at and calls > stop_at:
                raise Interrupted
            return sandwich_step(net, images, labels, [net.space.largest(), net.space.sample(rng)])

        folder.mkdir(exist_ok=True)
        try:
            fit(net, step, data, schedule, stage="s", run_dir=folder, seed=3, checkpoint_seconds=0)
        except Interrupted:
            return None
        return net.state_dict()

    whole = run(tmp_path / "whole")
    assert run(tmp_path / "cut", stop_at=at) is None
    resumed = run(tmp_path / "cut")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_what_decays_and_what_learns_at_its_own_rate():
    """Convolution and linear weights decay; norms, biases, step sizes, scales and offsets do not."""
    config, space = qfa.mixed_precision(qfa.Config(), PRESETS["nano"])
    net = build_network(config, space)
    (optimizer,) = make_optimizers(net, Schedule(1, 2, 0.1, weight_decay=0.5, step_size_lr=0.25))
    names = {parameter: name for name, parameter in net.named_parameters()}
    groups = {(g["weight_decay"], g["scale"]): {names[p] for p in g["params"]} for g in optimizer.param_groups}
    assert set(groups) == {(0.5, 1.0), (0.0, 1.0), (0.0, 0.25)} and sum(map(len, groups.values())) == len(names)
    assert {name.rsplit(".", 1)[1] for name in groups[0.0, 0.25]} == {"step_size", "scale", "offset"}
    assert all(net.get_parameter(name).dim() >= 2 for name in groups[0.5, 1.0])
    assert {"stem.weight", "classifier.weight", "stage1.block1.depthwise.kernel_transforms.3"} <= groups[0.5, 1.0]
    assert {"stem.norm.weight", "classifier.bias"} <= groups[0.0, 1.0]


def test_training_lowers_the_loss(tmp_path):
    small_fit(tmp_path, steps=100, lr=2e-2)
    losses = [row["loss"] for row in read_lines(tmp_path / "metrics.jsonl")]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.3


def test_metrics_are_complete(trained):
    rows = read_lines(trained / "metrics.jsonl")
    assert [s for s in dict.fromkeys(r["stage"] for r in rows)] == ["float", "4bit", "2bit"]
    for stage in oqat.stages(CONFIG):
        mine = [r for r in rows if r["stage"] == stage]
        assert mine[-1]["step"] == mine[-1]["steps"] and 0 <= mine[-1]["top1_largest"] <= 1
        assert [r["step"] for r in mine] == sorted({r["step"] for r in mine})


SHARES = [(0.0, 0.0), (0.25, 0.0), (1.0, 0.0), (0.5, 0.25), (0.5, 1.0)]


@pytest.mark.parametrize("label_share, largest_share", SHARES)
def test_sandwich_step_accumulates_the_average_gradient(label_share, largest_share):
    net = build_network(replace(TINY, dropout=0.0))
    images, labels = torch.randn(8, 1, 8, 8), torch.arange(8)
    archs = [net.space.largest(), net.space.smallest()]
    sandwich_step(net, images, labels, archs, label_share=label_share, largest_share=largest_share)
    got = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    logits = [net(images, arch) for arch in archs]
    loss = torch.nn.functional.cross_entropy(logits[0], labels)
    soft = torch.nn.functional.cross_entropy(logits[1], logits[0].detach().softmax(1))
    other = (1 - label_share) * soft + label_share * torch.nn.functional.cross_entropy(logits[1], labels)
    share = largest_share or 0.5
    (share * loss + (1 - share) * other).backward()
    for name, p in net.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(got[name], p.grad, atol=1e-6, rtol=1e-4)


def test_shared_weights_give_the_gradients_of_separate_subnets():
    """Equal but for the weight step sizes, whose gradient scale then counts all channels (docs/oqat.md)."""
    net = build_network(replace(supernet(4).config, dropout=0.0)).to(memory_format=torch.channels_last)
    initialise_quantizers(net, torch.randn(16, 1, 8, 8))
    images, labels = torch.randn(8, 1, 8, 8), torch.arange(8)
    rng = np.random.default_rng(0)
    archs = [net.space.largest(), net.space.smallest(), *(net.space.sample(rng) for _ in range(3))]
    for choice in (archs[:1], archs):
        gradients = []
        for shared in (SharedWeights(), None):
            net.zero_grad()
            for arch in choice:
                torch.nn.functional.cross_entropy(net(images, arch, Pass(shared=shared)), labels).backward()
            if shared:
                assert all(p.grad is None for n, p in net.named_parameters() if n.endswith("stem.weight"))
                shared.backward()
            gradients.append({n: p.grad for n, p in net.named_parameters() if p.grad is not None})
        together, apart = gradients
        assert together.keys() == apart.keys()
        for name, grad in together.items():
            if len(choice) == 1 or not name.endswith("weight_quantizer.step_size"):
                torch.testing.assert_close(grad, apart[name], atol=1e-5, rtol=1e-3)


def test_streamed_data_train_the_same_way(tmp_path):
    """Images decoded by worker processes at every access, crops included, reproducibly."""
    data = load_data("digits", size=8, max_train=60, resident_limit_bytes=0)
    config = replace(CONFIG, bit_schedule=(4,))
    oqat.train(config, Run(tmp_path / "first", TINY, data))
    oqat.train(replace(config, checkpoint_seconds=60), Run(tmp_path / "second", TINY, data))
    first, second = (read_tensors(tmp_path / n / "4bit.safetensors")[0] for n in ("first", "second"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_run_files_are_plain(trained):
    assert all(json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines())
