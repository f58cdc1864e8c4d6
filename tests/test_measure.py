"""Measuring a subnet: its own batch statistics, and a supernet that stays as it is."""

from dataclasses import replace

import numpy as np
import torch
from small_training import TINY, digits

from oncequant.data import calibration_batches
from oncequant.measure import Judge, calibrated_subnet, measure
from oncequant.methods import oqat
from oncequant.models import build_network


def test_measuring_never_changes_the_supernet(trained):
    net, data = oqat.load_supernet(trained, "4bit"), digits()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    batches = [(data.test.images(torch.arange(32)).float() / 255, data.test.labels[:32])]
    first, again = (measure(net, net.space.largest(), batches, batches) for _ in range(2))
    assert first.accuracy == again.accuracy and torch.equal(first.probability, again.probability)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def test_calibrated_subnet_repeats_the_forward_with_batch_statistics():
    """One calibration batch: every layer's stored mean and biased variance are those of that batch."""
    torch.manual_seed(0)
    net = build_network(replace(TINY, dropout=0.0))
    images, arch = torch.randn(32, 1, 8, 8), net.space.sample(np.random.default_rng(0))
    subnet = calibrated_subnet(net, arch, [(images, None)])
    with torch.no_grad():
        scale = torch.cat([m.running_var for m in subnet.modules() if hasattr(m, "running_var")]).min()
        assert scale < 0.9  # not the initial ones
        # batch_norm normalises with the biased variance in training, and calibrate stores the biased one
        torch.testing.assert_close(subnet.eval()(images, arch), subnet.train()(images, arch), atol=1e-4, rtol=1e-3)


def test_calibration_weighs_batches_by_images():
    net = build_network(TINY)
    images, arch = torch.randn(30, 1, 8, 8), net.space.largest()
    subnet = calibrated_subnet(net, arch, [(images[:24], None), (images[24:], None)])
    with torch.no_grad():
        x = torch.nn.functional.conv2d(images, subnet.stem.weight, padding=1)  # the stem's first batch norm sees this
    torch.testing.assert_close(subnet.stem.norm.running_mean, x.mean((0, 2, 3)), atol=1e-6, rtol=1e-4)


def test_looks_while_training_are_at_a_random_part_the_same_each_time(monkeypatch):
    """Few images are all looked at; of many a random part, since they may lie in the order of their classes."""
    data = digits()
    calibration = calibration_batches(data, 200, 50)
    whole = Judge(data, calibration)
    assert len(whole.while_training().data.validation) == len(data.validation)
    assert len(whole.while_training().calibration) == len(calibration)
    monkeypatch.setattr("oncequant.measure.LOOK_IMAGES", 40)
    monkeypatch.setattr("oncequant.measure.LOOK_STATISTICS", 75)
    first, again = whole.while_training(), whole.while_training()
    assert [len(labels) for _, labels in first.calibration] == [len(labels) for _, labels in calibration[:2]]
    labels = first.data.validation.labels
    assert len(labels) == 40 and torch.equal(labels, again.data.validation.labels)
    assert not torch.equal(labels, data.validation.labels[:40]) and len(set(labels.tolist())) > 5
    net = build_network(TINY)
    top1 = first.validation(net, net.space.largest()).top1
    assert round(40 * top1, 6) == round(40 * top1) and top1 == again.validation(net, net.space.largest()).top1
