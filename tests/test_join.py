"""Batch norm, sum, activation and grids in one pass, beside PyTorch one after the other."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from oncequant import native
from oncequant.join import Normalized, Reader, batch_norm_statistics, can_join, join
from oncequant.quantizers.functional import Grid, activate, fake_quantize, integer_range


def norm_of(z, weight, bias):
    return Normalized(z, weight, bias, batch_norm_statistics(z, weight, bias, 1e-5))


def together(parts, other, activation, grids):
    """All at once; `parts` are z, weight and bias, `other` the same, or a tensor in a list, or nothing."""
    added = norm_of(*other) if len(other) == 3 else other[0] if other else None
    return join(norm_of(*parts), added, activation, [Reader(grid) for grid in grids])


def apart(parts, other, activation, grids):
    """The same in PyTorch."""
    (z, *norm), added = parts, other
    x = F.batch_norm(z, None, None, *norm, True, 1.0, 1e-5)
    if added:
        x = x + (F.batch_norm(added[0], None, None, *added[1:], True, 1.0, 1e-5) if len(added) == 3 else added[0])
    x = activate(x, activation)
    return [x if g is None else fake_quantize(x, g.step_size, g.bits, g.signed, g.grad_scale, g.offset) for g in grids]


def distance_to_boundary(parts, other, activation, grids):
    """Least distance of a value from where rounding decides."""
    wide = [t.detach().double() for t in parts], [t.detach().double() for t in other]
    (before,), (x,) = apart(*wide, None, [None]), apart(*wide, activation, [None])
    distances = [before.abs().amin() if activation == "relu" else torch.tensor(1.0)]
    flat = before <= {None: -torch.inf, "relu": 0, "hardswish": -3}[activation]
    for grid in filter(None, grids):
        u = x / grid.step_size.detach().double().abs()
        u = u if grid.offset is None else u + grid.offset.detach().double()
        q_min, q_max = integer_range(grid.bits, grid.signed)
        near = torch.stack([(u % 1 - 0.5).abs(), (u - q_min).abs(), (u - q_max).abs()]).amin(0)[~flat]
        if near.numel():
            distances.append(near.min())
    return min(distances)


@pytest.mark.compiler
@settings(deadline=None, max_examples=80)
@given(
    images=st.integers(3, 5),
    channels=st.sampled_from([1, 3, 8, 24, 32]),
    size=st.integers(1, 4),
    kind=st.sampled_from(["alone", "plain", "normalized"]),
    activation=st.sampled_from([None, "relu", "hardswish"]),
    readers=st.lists(st.sampled_from(["itself", "grid", "signed", "offset", "negative step"]), min_size=1, max_size=3),
    bits=st.sampled_from([2, 3, 4]),
    mean=st.sampled_from([0.0, -2.0]),
    seed=st.integers(0, 99),
)
def test_all_at_once_equals_one_after_the_other(images, channels, size, kind, activation, readers, bits, mean, seed):
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    def part():
        z = mean + randn(images, channels, size, size) * torch.linspace(0.2, 3, channels)[:, None, None]
        z = z.to(memory_format=torch.channels_last).requires_grad_()
        return [z, (1 + 0.3 * randn(channels)).requires_grad_(), (0.3 * randn(channels)).requires_grad_()]

    def grid(name):
        step = torch.tensor((-1 if name == "negative step" else 1) * 2.5 / 2**bits, requires_grad=True)
        offset = torch.tensor(0.4, requires_grad=True) if name == "offset" else None
        return None if name == "itself" else Grid(step, offset, 0.7, bits, name == "signed", activation)

    parts, other = part(), {"alone": 0, "plain": 1, "normalized": 3}[kind]
    other, grids = part()[:other], [grid(name) for name in readers]
    assume(distance_to_boundary(parts, other, activation, grids) > 1e-4)
    inputs = [*parts, *other, *(t for g in grids if g for t in g[:2] if t is not None)]
    grads, found = [randn(images, channels, size, size) for _ in readers], []
    for way in (together, apart):
        ys = way(parts, other, activation, grids)
        found.append([*ys, *torch.autograd.grad(ys, inputs, grads)])
    scale = sum(grad.norm() for grad in grads) + parts[0].detach().norm()
    for a, b in zip(*found, strict=True):
        assert (a - b).norm() <= 1e-3 * b.norm() + 1e-4 * scale


@pytest.mark.compiler
@pytest.mark.parametrize("other", ["alone", "plain", "normalized"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bfloat16_is_close_to_float32(other, dtype):
    torch.manual_seed(0)
    parts = [torch.randn(4, 16, 9, 9).to(memory_format=torch.channels_last), torch.rand(16), torch.randn(16)]
    added = {"alone": [], "plain": [torch.randn_like(parts[0])], "normalized": [t + 0.3 for t in parts]}[other]
    step = torch.tensor(0.2, requires_grad=True)
    grid, grads = Grid(step, None, 1.0, 4, False, "relu"), [torch.randn(4, 16, 9, 9) for _ in range(2)]
    found = []
    for z_type, y_type in ((torch.bfloat16, dtype), (torch.float32, torch.float32)):
        mine, theirs = (
            [t.bfloat16().to(z_type) if t.dim() == 4 else t.clone() for t in group] for group in (parts, added)
        )
        inputs = [t.requires_grad_() for t in (*mine, *theirs)]
        first, second = norm_of(*mine), norm_of(*theirs) if len(theirs) == 3 else theirs[0] if theirs else None
        ys = join(first, second, "relu", [Reader(grid, y_type), Reader()])
        assert [y.dtype for y in ys] == [y_type, z_type]
        got = torch.autograd.grad(ys, [*inputs, step], [g.to(y.dtype) for g, y in zip(grads, ys)])
        assert all(g.dtype == t.dtype for g, t in zip(got, inputs))
        found.append([*ys, *got])
    for half, single in zip(*found, strict=True):
        assert (half.float() - single).norm() <= 0.03 * single.norm()


def on_threads(z, other, threads):
    torch.manual_seed(0)
    norm = [torch.rand(24).requires_grad_(), torch.randn(24).requires_grad_()]
    step, before = torch.tensor(0.2, requires_grad=True), torch.get_num_threads()
    torch.set_num_threads(threads)
    grid = Grid(step, None, 1.0, 4, False, "relu")
    y, x = join(norm_of(z, *norm), norm_of(other, *norm), "relu", [Reader(grid), Reader()])
    weighted = (y + x * x) * torch.linspace(-1, 1, 24)[:, None, None]
    grads = torch.autograd.grad(weighted.sum(), [z, other, *norm, step])
    torch.set_num_threads(before)
    return y, x, *grads


@pytest.mark.compiler
def test_a_large_tensor_on_any_number_of_threads():
    z, other = (torch.randn(5, 24, 41, 37).to(memory_format=torch.channels_last).requires_grad_() for _ in range(2))
    found = [on_threads(z, other, threads) for threads in (1, 2, 3)]
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


@pytest.mark.compiler
def test_not_a_number_passes_through():
    for place in (0, 3):  # in the rows about which variances are taken, or not
        z = torch.randn(5, 24, 10, 10).to(memory_format=torch.channels_last)
        other = torch.randn_like(z)
        z[place, 3, 5, 5] = torch.nan
        y, *_ = on_threads(z.requires_grad_(), other.requires_grad_(), 1)
        assert y[:, 3].isnan().any() and not y[:, 4].isnan().any()


@pytest.mark.compiler
def test_those_that_read_the_result_itself_share_its_memory_and_not_its_gradient():
    z = torch.randn(2, 8, 3, 3).requires_grad_()
    y, x, same = join(
        norm_of(z, torch.ones(8), torch.zeros(8)),
        None,
        None,
        [Reader(Grid(torch.tensor(0.1), None, 1.0, 8, True, None)), Reader(), Reader()],
    )
    assert x.data_ptr() == same.data_ptr() != y.data_ptr()
    (both,) = torch.autograd.grad((x**3).sum() + 2 * (same**3).sum(), z, retain_graph=True)
    (one,) = torch.autograd.grad(3 * (x**3).sum(), z)
    assert_close(both, one)


def test_what_cannot_be_joined_is_refused():
    norm, step, good = (torch.ones(16), torch.zeros(16), torch.ones(4, 16)), torch.tensor(0.2), torch.randn(2, 16, 3, 3)
    for z, other, s, readers in (
        (torch.randn(1, 16, 1, 1), None, step, 1),
        (torch.randn(0, 16, 3, 3), None, step, 1),
        (good, None, step.half(), 1),
        (good, good[:, :8], step, 1),
        (good, good.bfloat16(), step, 1),
        (good, None, step, native.MAX_READERS + 1),
    ):
        with pytest.raises(ValueError, match="cannot be joined"):
            join(Normalized(z, *norm), other, "relu", [Reader(Grid(s, None, 1.0, 4, False, "relu"))] * readers)
    assert not can_join(good.double())


@pytest.mark.compiler
def test_statistics_of_many_rows_and_any_number_of_threads():
    """Equal to float64 although the mean is 1,000 standard deviations, and the same to the last bit on all threads."""
    for channels in (24, 5):
        z = (1000 + torch.randn(7, channels, 61, 53)).to(memory_format=torch.channels_last)
        norm = torch.ones(channels), torch.zeros(channels), 1e-5, True
        threads, found = torch.get_num_threads(), []
        for number in (1, 3):
            torch.set_num_threads(number)
            found.append(batch_norm_statistics(z, *norm))
        torch.set_num_threads(threads)
        assert torch.equal(*found)
        exact = z.double()
        assert_close(found[0][0].double(), exact.mean((0, 2, 3)), atol=1e-4, rtol=0)
        assert_close(found[0][1].double(), exact.var((0, 2, 3), correction=0).rsqrt(), atol=1e-4, rtol=0)
        assert torch.equal(found[0][4], z.amin((0, 2, 3))) and torch.equal(found[0][5], z.amax((0, 2, 3)))
