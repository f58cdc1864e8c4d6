"""Training stops with advice: losses that are not finite, damaged checkpoints, full disks."""

import pytest
import torch
from small_training import TINY, Interrupted, digits, small_fit, supernet

from oncequant.files import FileError
from oncequant.models import build_network
from oncequant.sandwich import sandwich_step
from oncequant.schedule import Schedule
from oncequant.train import SupernetOptions, TrainingError, TrainingOptions, fit


def test_a_loss_that_is_not_finite_stops_with_advice(tmp_path):
    calls = []

    def step(images, labels, rng, done):
        calls.append(1)
        return torch.tensor(float("nan") if len(calls) == 3 else 1.0)

    with pytest.raises(TrainingError, match=r"not finite at step 3.*last good state is .*s\.resume\.pt.*learning rate"):
        small_fit(tmp_path, step, steps=5)
    state = torch.load(tmp_path / "s.resume.pt", weights_only=True)
    assert state["step"] == 2


@pytest.mark.parametrize("bits", [32, 2])
@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
def test_the_advice_helps(bits, optimizer, tmp_path):
    """After a far too high learning rate, a lower one is the cure; to clip more is none, so it is not advised."""

    def train(folder, rate, clip_norm=10.0):
        net = supernet(bits)

        def step(images, labels, rng, done):
            return sandwich_step(net, images, labels, [net.space.largest()])

        rates = dict(lr=8e-3 * rate, muon_lr=0.12 * rate, optimizer=optimizer, clip_norm=clip_norm)
        fit(net, step, digits(), Schedule(20, 16, **rates), stage="s", run_dir=tmp_path / folder, seed=0)

    for folder, clip_norm in (("high", 10.0), ("clipped", 0.1)):
        with pytest.raises(TrainingError, match=r"not finite at step ([2-9]|1\d).*learning rate below 8e\+06"):
            train(folder, 1e9, clip_norm)
    train("lower", 10)


def test_numbers_broken_from_the_start_are_no_matter_of_the_learning_rate(tmp_path):
    net = build_network(TINY)
    with torch.no_grad():
        net.stem.weight[0, 0, 0, 0] = float("inf")

    def step(images, labels, rng, done):
        return sandwich_step(net, images, labels, [net.space.smallest()])

    with pytest.raises(TrainingError, match="not finite at step 1, before anything was learned.*weights"):
        fit(net, step, digits(), Schedule(60, 16, 1e-3), stage="s", run_dir=tmp_path, seed=0)  # logged every 3 steps


@pytest.mark.parametrize(
    "options",
    [dict(optimizer="foo"), dict(lr=-1.0), dict(quantized_lr=0.0), dict(seed=-1), dict(calibration_images=0)]
    + [dict(label_smoothing=2.0), dict(lr=float("nan")), dict(epochs=0), dict(batch_size=1), dict(clip_norm=0.0)],
    ids=lambda options: next(iter(options)),
)
def test_impossible_options_are_refused(options):
    name, value = next(iter(options.items()))
    with pytest.raises(ValueError, match=f"^{name} '?{value}'?: use"):
        (SupernetOptions if name == "quantized_lr" else TrainingOptions)(**options)


@pytest.mark.parametrize("at", [3, 5])
def test_a_gradient_that_is_not_finite_stops_too(tmp_path, at):
    """The loss of the largest subnet is still finite when a smaller one's backward pass goes wrong, at the end too."""
    net = build_network(TINY)
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
