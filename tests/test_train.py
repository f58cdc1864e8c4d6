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

from oncequant.calibrate import initialise_quantizers
from oncequant.data import load_data
from oncequant.elastic import SharedWeights, elastic_layers
from oncequant.evaluate import calibrated_subnet, measure
from oncequant.files import FileError, read_lines, read_tensors
from oncequant.methods import oqat, qfa
from oncequant.models.mobilenet_v3 import PRESETS, MobileNetV3, with_bits
from oncequant.sandwich import sandwich_step
from oncequant.train import Schedule, TrainingError, TrainingOptions, fit, make_optimizers

TINY = replace(PRESETS["nano"], resolutions=(6, 8), stage_widths=(8, 8, 8), final_expand_width=16, feature_mix_width=16,
               stem_width=8, edge_bits=8, se_bits=8)  # fmt: skip
CONFIG = oqat.Config(
    bit_schedule=(4, 2), epochs=1, float_epochs=1, min_steps=4, batch_size=32, random_subnets=1,
    calibration_images=64, checkpoint_seconds=0,
)  # fmt: skip

SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_train import CONFIG, TINY, digits
from oncequant.methods import oqat
oqat.train(CONFIG, TINY, digits(), Path(sys.argv[1]))
"""


def digits(size=8, train=120):
    return load_data("digits", size=size, max_train=train)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("run")
    oqat.train(CONFIG, TINY, digits(), run_dir)
    return run_dir


def weights(run_dir):
    return {stage: read_tensors(run_dir / f"{stage}.safetensors")[0] for stage in CONFIG.stages}


def assert_equal_runs(first, second):
    for stage, tensors in weights(first).items():
        for name, tensor in weights(second)[stage].items():
            assert torch.equal(tensor, tensors[name]), (stage, name)


def test_training_is_reproducible(trained, tmp_path):
    oqat.train(CONFIG, TINY, digits(), tmp_path)
    assert_equal_runs(trained, tmp_path)


def test_sigkill_at_random_times_changes_nothing(trained, tmp_path, request):
    """Kill the training process several times; the resumed run ends with the same bits and the same log."""
    command = [sys.executable, "-c", SCRIPT.format(tests=str(request.path.parent)), str(tmp_path)]
    rng = random.Random(0)
    log, kills = tmp_path / "metrics.jsonl", 0

    def size():
        return log.stat().st_size if log.exists() else 0

    for _ in range(3):
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


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("at", [1, 4, 6])
def test_interruption_inside_a_stage_resumes_bit_identically(tmp_path, at):
    data = digits()
    schedule = Schedule(steps=8, batch_size=32, lr=1e-2)

    def run(folder, stop_at=None):
        torch.manual_seed(0)
        net = MobileNetV3(replace(TINY, dropout=0.5)).to(memory_format=torch.channels_last)
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


def small_fit(tmp_path, step=None, steps=3, **schedule):
    torch.manual_seed(0)
    net = MobileNetV3(TINY)
    step = step or (lambda images, labels, rng, done: sandwich_step(net, images, labels, [net.space.smallest()]))
    fit(net, step, digits(), Schedule(steps, 16, **{"lr": 1e-3, **schedule}), stage="s", run_dir=tmp_path, seed=0,
        checkpoint_seconds=0)  # fmt: skip


def test_a_loss_that_is_not_finite_stops_with_advice(tmp_path):
    calls = []

    def step(images, labels, rng, done):
        calls.append(1)
        return torch.tensor(float("nan") if len(calls) == 3 else 1.0)

    with pytest.raises(TrainingError, match=r"not finite at step 3.*last good state is .*s\.resume\.pt.*learning rate"):
        small_fit(tmp_path, step, steps=5)
    state = torch.load(tmp_path / "s.resume.pt", weights_only=True)
    assert state["step"] == 2


@pytest.mark.parametrize(
    "options",
    [dict(optimizer="foo"), dict(lr=-1.0), dict(quantized_lr=0.0), dict(seed=-1), dict(calibration_images=0)]
    + [dict(label_smoothing=2.0), dict(lr=float("nan")), dict(epochs=0), dict(batch_size=1), dict(clip_norm=0.0)],
    ids=lambda options: next(iter(options)),
)
def test_impossible_options_are_refused(options):
    name, value = next(iter(options.items()))
    with pytest.raises(ValueError, match=f"^{name} '?{value}'?: use"):
        TrainingOptions(**options)


@pytest.mark.parametrize("at", [3, 5])
def test_a_gradient_that_is_not_finite_stops_too(tmp_path, at):
    """The loss of the largest subnet is still finite when a smaller one's backward pass goes wrong, at the end too."""
    net = MobileNetV3(TINY)
    calls = []

    def step(images, labels, rng, done):
        calls.append(1)
        loss = sandwich_step(net, images, labels, [net.space.smallest()])
        if len(calls) == at:
            net.stem.weight.grad[0, 0, 0, 0] = float("nan")
        return loss

    with pytest.raises(TrainingError, match=f"not finite at step {at}"):
        fit(net, step, digits(), Schedule(5, 16, 1e-3), stage="s", run_dir=tmp_path, seed=0, checkpoint_seconds=0)
    state = torch.load(tmp_path / "s.resume.pt", weights_only=True)
    assert state["step"] == at - 1 and all(v.isfinite().all() for v in state["net"].values())


def test_what_decays_and_what_learns_at_its_own_rate():
    """Convolution and linear weights decay; norms, biases, step sizes, scales and offsets do not."""
    config, space = qfa.mixed_precision(qfa.Config(), PRESETS["nano"])
    net = MobileNetV3(config, space)
    (optimizer,) = make_optimizers(net, Schedule(1, 2, 0.1, weight_decay=0.5, step_size_lr=0.25))
    names = {parameter: name for name, parameter in net.named_parameters()}
    groups = {(g["weight_decay"], g["scale"]): {names[p] for p in g["params"]} for g in optimizer.param_groups}
    assert set(groups) == {(0.5, 1.0), (0.0, 1.0), (0.0, 0.25)} and sum(map(len, groups.values())) == len(names)
    assert {name.rsplit(".", 1)[1] for name in groups[0.0, 0.25]} == {"step_size", "scale", "offset"}
    assert all(net.get_parameter(name).dim() >= 2 for name in groups[0.5, 1.0])
    assert {"stem.weight", "classifier.weight", "stage1.block1.depthwise.kernel_transforms.3"} <= groups[0.5, 1.0]
    assert {"stem.norm.weight", "classifier.bias"} <= groups[0.0, 1.0]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a checkpoint", b"\x80\x04cposix\nsystem\n(S'true'\ntR."])
def test_damaged_or_hostile_checkpoints_are_refused(tmp_path, content):
    (tmp_path / "s.resume.pt").write_bytes(content)
    with pytest.raises(FileError, match="s.resume.pt is not a readable checkpoint"):
        small_fit(tmp_path)


def test_a_hostile_pickle_is_not_executed(tmp_path):
    from pathlib import Path

    class Hostile:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"step": Hostile()}, tmp_path / "s.resume.pt")
    with pytest.raises(FileError):
        small_fit(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    losses = iter([torch.tensor(1.0)])

    def step(images, labels, rng, done):
        for loss in losses:
            return loss
        raise Interrupted

    with pytest.raises(Interrupted):
        small_fit(tmp_path, step)
    with pytest.raises(FileError, match="made with other settings .*schedule"):
        small_fit(tmp_path, lr=5e-3)


def test_a_checkpoint_is_not_called_damaged_where_memory_was_short(tmp_path, monkeypatch):
    from oncequant import train

    def load(*_, **__):
        raise torch.OutOfMemoryError("no memory")

    (tmp_path / "s.resume.pt").write_bytes(b"good")
    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(torch.OutOfMemoryError):
        train._load_checkpoint(tmp_path / "s.resume.pt", torch.nn.Linear(2, 2), [], {})


def test_a_full_disk_is_a_clear_error_and_leaves_no_half_file(tmp_path, monkeypatch):
    import os

    def run(fail_at):
        """Train with a disk that is full from the given write on; the checkpoint's bytes before that."""
        writes, real = [], os.fsync
        kept = {}

        def full(handle):
            writes.append(1)
            if len(writes) >= fail_at:
                path = tmp_path / "s.resume.pt"
                kept["before"] = path.read_bytes() if path.exists() else None
                raise OSError(28, "No space left on device")
            real(handle)

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(FileError, match="cannot .*No space left on device"):
            small_fit(tmp_path, steps=6)
        monkeypatch.setattr(os, "fsync", real)
        return kept["before"]

    for fail_at in (1, 3, 5, 6):  # among them writes of the log and of the checkpoint
        before = run(fail_at)
        path = tmp_path / "s.resume.pt"
        assert (path.read_bytes() if path.exists() else None) == before
        assert not list(tmp_path.glob(".*"))
    assert before is not None
    small_fit(tmp_path, steps=6)  # and it goes on when there is space again


def test_training_lowers_the_loss(tmp_path):
    small_fit(tmp_path, steps=100, lr=2e-2)
    losses = [row["loss"] for row in read_lines(tmp_path / "metrics.jsonl")]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.3


def test_metrics_are_complete(trained):
    rows = read_lines(trained / "metrics.jsonl")
    assert [s for s in dict.fromkeys(r["stage"] for r in rows)] == ["float", "4bit", "2bit"]
    for stage in CONFIG.stages:
        mine = [r for r in rows if r["stage"] == stage]
        assert mine[-1]["step"] == mine[-1]["steps"] and 0 <= mine[-1]["top1_largest"] <= 1
        assert [r["step"] for r in mine] == sorted({r["step"] for r in mine})


def test_sandwich_step_accumulates_the_average_gradient():
    net = MobileNetV3(replace(TINY, dropout=0.0))
    images, labels = torch.randn(8, 1, 8, 8), torch.arange(8)
    archs = [net.space.largest(), net.space.smallest()]
    sandwich_step(net, images, labels, archs)
    got = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    logits = [net(images, arch) for arch in archs]
    loss = torch.nn.functional.cross_entropy(logits[0], labels)
    loss = loss + torch.nn.functional.cross_entropy(logits[1], logits[0].detach().softmax(1))
    (loss / 2).backward()
    for name, p in net.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(got[name], p.grad, atol=1e-6, rtol=1e-4)


def test_shared_weights_give_the_gradients_of_separate_subnets():
    """Equal but for the weight step sizes, whose gradient scale then counts all channels (docs/oqat.md)."""
    net = supernet(4)
    initialise_quantizers(net, torch.randn(16, 1, 8, 8))
    net.config = replace(net.config, dropout=0.0)
    images, labels = torch.randn(8, 1, 8, 8), torch.arange(8)
    rng = np.random.default_rng(0)
    archs = [net.space.largest(), net.space.smallest(), *(net.space.sample(rng) for _ in range(3))]
    for choice in (archs[:1], archs):
        gradients = []
        for shared in (SharedWeights(), None):
            net.zero_grad()
            for arch in choice:
                torch.nn.functional.cross_entropy(net(images, arch, shared), labels).backward()
            if shared:
                assert all(p.grad is None for n, p in net.named_parameters() if n.endswith("stem.weight"))
                shared.backward()
            gradients.append({n: p.grad for n, p in net.named_parameters() if p.grad is not None})
        together, apart = gradients
        assert together.keys() == apart.keys()
        for name, grad in together.items():
            if len(choice) == 1 or not name.endswith("weight_quantizer.step_size"):
                torch.testing.assert_close(grad, apart[name], atol=1e-5, rtol=1e-3)


# -- OQAT's own rules


def supernet(bits, seed=0):
    torch.manual_seed(seed)
    net = MobileNetV3(with_bits(TINY, bits))
    if bits < 32:
        initialise_quantizers(net, torch.randn(16, 1, 8, 8))
    return net


@pytest.mark.parametrize("high, low", [(4, 3), (3, 2), (8, 2), (6, 5)])
def test_inheritance_copies_weights_and_doubles_the_steps_of_falling_layers_only(high, low):
    higher, lower = supernet(high), MobileNetV3(with_bits(TINY, low))
    oqat.inherit_bits(higher, lower, digits(), CONFIG)
    specs = lower.space.layers(lower.space.largest())
    theirs = dict(elastic_layers(higher))
    for name, layer in elastic_layers(lower):
        assert torch.equal(layer.weight, theirs[name].weight)
        factor = 1 if specs[name].weight_bits == 8 else 2 ** (high - low)
        for quantizer in ("weight_quantizer", "act_quantizer"):
            mine, his = getattr(layer, quantizer).step_size, getattr(theirs[name], quantizer).step_size
            assert torch.equal(mine, factor * his)


def test_inheritance_from_float_initialises_every_step():
    lower = MobileNetV3(with_bits(TINY, 4))
    oqat.inherit_bits(supernet(32), lower, digits(), CONFIG)
    steps = [p for n, p in lower.named_parameters() if n.endswith("step_size")]
    assert steps and all(s.isfinite() and s > 0 for s in steps)


@pytest.mark.parametrize("schedule", [(4, 4), (2, 3), (1,), (9, 4), (32,)])
def test_impossible_bit_schedules_are_refused(schedule):
    with pytest.raises(ValueError, match="bit_schedule"):
        oqat.Config(bit_schedule=schedule)


def test_direct_start_and_long_schedules_train(tmp_path):
    config = replace(CONFIG, bit_schedule=(8, 6, 5, 4, 3, 2), min_steps=1, batch_size=64)
    oqat.train(config, TINY, digits(), tmp_path / "long")
    oqat.train(replace(config, bit_schedule=(2,)), TINY, digits(), tmp_path / "direct")
    for folder, stages in (("long", ["8bit", "6bit", "5bit", "4bit", "3bit", "2bit"]), ("direct", ["2bit"])):
        assert all((tmp_path / folder / f"{stage}.safetensors").exists() for stage in stages)


def test_one_architecture_can_be_trained_alone(tmp_path):
    arch = MobileNetV3(TINY).space.sample(np.random.default_rng(0))
    only = MobileNetV3(TINY).space.brief(arch)
    oqat.train(CONFIG, TINY, digits(), tmp_path, only)
    net = oqat.load_supernet(tmp_path, "2bit")
    assert net.space.size() == 1 and dict(only).items() <= dict(net.space.largest()).items()


def test_streamed_data_train_the_same_way(tmp_path):
    """Images decoded by worker processes at every access, crops included, reproducibly."""
    data = load_data("digits", size=8, max_train=60, resident_limit_bytes=0)
    config = replace(CONFIG, bit_schedule=(4,))
    oqat.train(config, TINY, data, tmp_path / "first")
    oqat.train(replace(config, checkpoint_seconds=60), TINY, data, tmp_path / "second")
    first, second = (read_tensors(tmp_path / n / "4bit.safetensors")[0] for n in ("first", "second"))
    assert all(torch.equal(first[name], second[name]) for name in first)


# -- evaluation


def test_measuring_never_changes_the_supernet(trained):
    net, data = oqat.load_supernet(trained, "4bit"), digits()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    batches = [(data.test.images(torch.arange(32)).float() / 255, data.test.labels[:32])]
    first = measure(net, net.space.largest(), batches, batches)
    assert measure(net, net.space.largest(), batches, batches) == first
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def test_calibrated_subnet_repeats_the_forward_with_batch_statistics():
    """One calibration batch: every layer's stored mean and biased variance are those of that batch."""
    torch.manual_seed(0)
    net = MobileNetV3(replace(TINY, dropout=0.0))
    images, arch = torch.randn(32, 1, 8, 8), net.space.sample(np.random.default_rng(0))
    subnet = calibrated_subnet(net, arch, [(images, None)])
    with torch.no_grad():
        scale = torch.cat([m.running_var for m in subnet.modules() if hasattr(m, "running_var")]).min()
        assert scale < 0.9  # not the initial ones
        # batch_norm normalises with the biased variance in training, and calibrate stores the biased one
        torch.testing.assert_close(subnet.eval()(images, arch), subnet.train()(images, arch), atol=1e-4, rtol=1e-3)


def test_calibration_weighs_batches_by_images():
    net = MobileNetV3(TINY)
    images, arch = torch.randn(30, 1, 8, 8), net.space.largest()
    subnet = calibrated_subnet(net, arch, [(images[:24], None), (images[24:], None)])
    with torch.no_grad():
        x = torch.nn.functional.conv2d(images, subnet.stem.weight, padding=1)  # the stem's first batch norm sees this
    torch.testing.assert_close(subnet.stem.norm.running_mean, x.mean((0, 2, 3)), atol=1e-6, rtol=1e-4)


def test_run_files_are_plain(trained):
    assert all(json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines())
