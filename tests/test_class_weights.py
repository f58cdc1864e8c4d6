"""`--class-weights balanced`: the loss of an image counts by its class, in every method."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import fails
from small_dnas import FAST
from small_dnas import MODEL as RESNET
from small_qfa import QUICK
from small_qfa import TINY as ELASTIC
from small_training import CONFIG, TINY, Interrupted, assert_equal_runs
from torch.nn import functional as F

from oncequant import train
from oncequant.data import load_data
from oncequant.files import FileError
from oncequant.loss import Loss, balanced_weights
from oncequant.methods import METHODS, dnas, oqat, qfa
from oncequant.models import build_network
from oncequant.run_folder import Run
from oncequant.sandwich import sandwich_step
from oncequant.supernet_file import load_supernet

OLD = Path(__file__).parent / "old_runs"


def imbalanced(size=8, images=(200, 20), brighter=55):
    """Grey noise of two classes, the second one slightly brighter."""
    rng, labels = np.random.default_rng(0), np.repeat([0, 1], images).tolist()
    rows = [(rng.integers(0, 200, (8, 8), dtype=np.uint8) + np.uint8(brighter * label), label) for label in labels]
    return load_data((rows, None, None), size=size)


def test_weights_are_by_hand():
    data = imbalanced()
    counts = data.train.labels.bincount()
    assert counts.tolist() == [130, 13]
    torch.testing.assert_close(balanced_weights(data), torch.tensor([143 / 260, 143 / 26]))
    assert float(balanced_weights(data)[data.train.labels].mean()) == pytest.approx(1)
    assert oqat.Config().loss(data).class_weights is None


def test_the_loss_of_an_image_counts_by_its_class():
    logits, soft, labels = torch.randn(6, 3), torch.randn(6, 3).softmax(1), torch.tensor([0, 0, 1, 2, 0, 1])
    weights = torch.tensor([0.5, 1.0, 4.0])
    loss = Loss(0.1, weights)
    smooth = F.one_hot(labels, 3) * 0.9 + 0.1 / 3
    for found, target in ((loss(logits, labels), smooth), (loss.taught(logits, soft, labels), soft)):
        each = -(target * logits.log_softmax(1)).sum(1)
        torch.testing.assert_close(found, (weights[labels] * each).mean())
    halves = [loss(logits[i::2], labels[i::2]) for i in range(2)]  # of two processes
    torch.testing.assert_close(torch.stack(halves).mean(), loss(logits, labels))
    plain = Loss(0.1)
    assert torch.equal(plain(logits, labels), F.cross_entropy(logits, labels, label_smoothing=0.1))
    assert torch.equal(plain.taught(logits, soft, labels), F.cross_entropy(logits, soft))


def test_distilled_subnets_are_weighted_too():
    """An image of a class without weight teaches none of the subnets anything."""
    torch.manual_seed(0)
    net = build_network(replace(TINY, dropout=0.0))
    images, labels, archs = torch.randn(8, 1, 8, 8), torch.zeros(8, dtype=torch.long), [net.space.largest()]
    archs.append(net.space.smallest())
    sandwich_step(net, images, labels, archs, Loss(0.0, torch.tensor([0.0] + [1.0] * 9)))
    assert all(p.grad is None or not p.grad.any() for p in net.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_by_it_and_its_options_say_so(method, tmp_path):
    data = imbalanced(10 if method == "qfa" else 8)
    weights = {}
    for name in ("none", "balanced"):
        if method == "oqat":
            cfg, model = replace(CONFIG, bit_schedule=(4,), class_weights=name), TINY
        elif method == "qfa":
            cfg, model = qfa.Config(**QUICK, class_weights=name), ELASTIC
        else:
            cfg, model = dnas.Config(**FAST, class_weights=name), RESNET
        run = Run(tmp_path / name, replace(model, num_classes=2), data)
        METHODS[method].train(cfg, run)
        assert json.loads((run.folder / "run.json").read_text())["method_config"]["class_weights"] == name
        stages = METHODS[method].stages(cfg)
        weights[name] = {stage: load_supernet(run.folder, stage).state_dict() for stage in stages}
    for stage, tensors in weights["none"].items():
        assert any(not torch.equal(tensor, weights["balanced"][stage][key]) for key, tensor in tensors.items()), stage


def test_rare_classes_are_learned_sooner(tmp_path):
    found = {}
    for name in ("none", "balanced"):
        cfg = replace(CONFIG, bit_schedule=(), min_steps=40, class_weights=name)
        data = imbalanced(images=(600, 60), brighter=12)
        run = Run(tmp_path / name, replace(TINY, num_classes=2), data)
        oqat.train(cfg, run)
        (member,) = oqat.choose(cfg, oqat.SearchOptions(), run)
        found[name] = member.balanced_test
    assert found["balanced"] > found["none"], found  # seen: 0.78 and 0.61


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    cfg, data = replace(CONFIG, class_weights="balanced"), imbalanced()
    runs = [Run(tmp_path / name, replace(TINY, num_classes=2), data) for name in ("whole", "killed")]
    oqat.train(cfg, runs[0])
    save, saved = train._save_checkpoint, []

    def killed(*arguments):
        save(*arguments)
        saved.append(arguments)
        if len(saved) == 5:
            raise Interrupted

    monkeypatch.setattr(train, "_save_checkpoint", killed)
    with pytest.raises(Interrupted):
        oqat.train(cfg, runs[1])
    oqat.train(cfg, runs[1])
    assert_equal_runs(*(run.folder for run in runs))


def test_other_weights_are_refused(tmp_path, monkeypatch, capsys):
    with pytest.raises(ValueError, match="class_weights 'rare': use one of none, balanced"):
        oqat.Config(class_weights="rare")
    for method in METHODS:
        message = fails(monkeypatch, capsys, "train", method, "--class-weights", "rare", status=2)
        assert "--class-weights rare: use none, balanced" in message
    run = Run(tmp_path, replace(TINY, num_classes=2), imbalanced())
    oqat.train(replace(CONFIG, bit_schedule=()), run)
    with pytest.raises(FileError, match=r"class_weights \(there 'none', now 'balanced'\)"):
        oqat.train(replace(CONFIG, bit_schedule=(), class_weights="balanced"), run)


def test_a_run_of_an_older_version_was_trained_without(tmp_path, monkeypatch, capsys):
    shutil.copy(OLD / "oqat.json", tmp_path / "run.json")
    words = json.loads((OLD / "oqat.json").read_text())["command"].split()[4:]
    words = "run", "--run", tmp_path, "--preset", "nano", "--class-weights", "balanced", *words
    message = fails(monkeypatch, capsys, *words)
    assert "class_weights (there 'none', now 'balanced')" in message
