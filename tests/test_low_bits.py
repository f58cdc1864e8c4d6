"""Low-bit training is sound from its first step: no step size runs away, and no channel's gradient explodes."""

from dataclasses import replace

import pytest
import torch
from small_dnas import MODEL
from small_training import TINY
from torch.nn import functional as F

from oncequant.elastic import ALONE, ElasticBatchNorm, Observer, Pass
from oncequant.family import with_bits
from oncequant.measure import initialise_quantizers
from oncequant.models import PRESETS, build_network
from oncequant.sandwich import sandwich_step
from oncequant.schedule import Schedule, make_optimizers

SMALLER = replace(TINY, resolutions=(8,), depths=(1,))
RESNET = replace(PRESETS["resnet-nano"], stage_widths=(8, 8, 16), depths=(1,), resolutions=(8,), edge_bits=8)
NETWORKS = {
    "MobileNetV3": with_bits(SMALLER, 2),
    "QFA": replace(SMALLER, weight_bits=(2,), act_bits=(2,), steps_per_bits=True, act_quantizer="batchquant"),
    "elastic ResNet": with_bits(RESNET, 2),
    "DNAS": replace(MODEL, precisions=(202,), weight_quantizer="lsq"),
}
# Seen: 2 to 9, as in float. One channel behind two batch norms without variance makes 50 to 2,000, a layer 1e4 to 1e16.
MOST = 30.0


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", NETWORKS)
def test_twenty_steps_at_two_bits_on_random_labels(name):
    """Ten seeds from random weights, at the learning rates of OQAT's quantized stages."""
    schedule, norms, shares = Schedule(20, 8, lr=8e-3, warmup=1, optimizer="muon", muon_lr=0.12), {}, [torch.ones(1)]
    for seed in range(10):
        torch.manual_seed(seed)
        net = build_network(NETWORKS[name])
        images, labels = torch.randn(64, 1, 8, 8), torch.randint(10, (64,))
        initialise_quantizers(net, images)
        steps = {p: p.detach().clone() for n, p in net.named_parameters() if n.endswith("step_size")}
        optimizers = make_optimizers(net, schedule)
        for step in range(schedule.steps):
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = schedule.lr_at(step) * group["scale"]
            net.zero_grad()
            chosen = torch.randint(64, (schedule.batch_size,))
            sandwich_step(net, images[chosen], labels[chosen], [net.space.largest()])
            norm = torch.nn.utils.clip_grad_norm_(net.parameters(), schedule.clip_norm)
            norms[seed] = max(norms.get(seed, 0.0), float(norm) if norm.isfinite() else float("inf"))
            for optimizer in optimizers:
                optimizer.step()
            shares += [(now.detach() / then).flatten() for now, then in steps.items()]
    assert max(norms.values()) < MOST, norms
    moved = torch.cat(shares)  # by four times the sum of the learning rates if all in one direction: exp(0.34) = 1.4
    assert 0.5 < moved.min() and moved.max() < 2, (moved.min(), moved.max())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_step_sizes_keep_their_sign_and_move_by_shares_of_themselves(optimizer):
    torch.manual_seed(0)
    net = build_network(with_bits(SMALLER, 2))
    steps = [p for name, p in net.named_parameters() if name.endswith("step_size")]
    start = torch.tensor([1e-6, -1e-3, 0.1, 10.0]).repeat(len(steps))[: len(steps)]
    with torch.no_grad():
        for step_size, value in zip(steps, start):
            step_size.fill_(value)
    optimizers = make_optimizers(net, Schedule(1, 2, lr=0.025, optimizer=optimizer))
    for _ in range(30):
        for step_size in steps:
            step_size.grad = torch.ones_like(step_size)
        for one in optimizers:
            one.step()
    now = torch.stack([p.detach() for p in steps])
    torch.testing.assert_close(now / start, torch.exp(-3 * start.sign()), rtol=1e-3, atol=0)


def test_a_batch_norm_without_variance_passes_the_gradient_on_as_it_came():
    torch.manual_seed(0)
    x, grad = torch.randn(8, 3, 4, 4), torch.randn(8, 3, 4, 4)
    x[:, 1] = 0.7
    norm = ElasticBatchNorm(3).train()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 2.0, 1.5]))
    (ours,) = torch.autograd.grad(norm(1 * x.requires_grad_()), x, grad)
    (usual,) = torch.autograd.grad(F.batch_norm(x, None, None, norm.weight, norm.bias, True), x, grad)
    assert torch.equal(ours[:, ::2], usual[:, ::2])
    torch.testing.assert_close(ours[:, 1], 2 * (grad[:, 1] - grad[:, 1].mean()), rtol=1e-3, atol=1e-4)
    assert usual[:, 1].norm() > 300 * ours[:, 1].norm()


@pytest.mark.parametrize("how", [ALONE, Pass(observer=Observer())], ids=["within the quantizer", "by itself"])
def test_a_channel_of_zeros_does_not_make_the_gradient(how):
    """All its quantized weights are zero, so two batch norms after another find no variance."""
    torch.manual_seed(0)
    net = build_network(with_bits(SMALLER, 2))
    initialise_quantizers(net, images := torch.randn(16, 1, 8, 8))
    layer = net.layer("stage3.block1.expand")
    with torch.no_grad():
        layer.weight[5] *= 1e-3
    sandwich_step(net, images, torch.randint(10, (16,)), [net.space.largest()], how=how)
    by_channel = layer.weight.grad.flatten(1).norm(dim=1)
    assert 0 < by_channel[5] < 3 * by_channel.median()
