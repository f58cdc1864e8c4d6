"""What every quantizer promises, whatever it is called."""

import pytest
import torch

from oncequant.arch import LayerSpec
from oncequant.elastic import ElasticConv, Quantizers
from oncequant.quantizers import INPUT_QUANTIZERS, WEIGHT_QUANTIZERS
from oncequant.quantizers.functional import fake_quantize, integer_range
from oncequant.quantizers.quantizer import Ask, Quantizer

EVERY = list(dict.fromkeys([*WEIGHT_QUANTIZERS.values(), *INPUT_QUANTIZERS.values()]))
all_quantizers = pytest.mark.parametrize("kind", EVERY)
of_weights = pytest.mark.parametrize("kind", WEIGHT_QUANTIZERS.values(), ids=WEIGHT_QUANTIZERS)
of_inputs = pytest.mark.parametrize("kind", INPUT_QUANTIZERS.values(), ids=INPUT_QUANTIZERS)


def tensor(seed=0, shape=(8, 6, 3, 3)):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def started(kind, x, ask, slots=None):
    quantizer = kind(slots, len(x))
    quantizer.initialise(x, ask)
    return quantizer


@pytest.mark.parametrize("weights", WEIGHT_QUANTIZERS)
@pytest.mark.parametrize("activations", INPUT_QUANTIZERS)
@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_in_a_layer(weights, activations, bits):
    """At most 2^bits levels, gradients of input and weight, and the same results after a round trip of the state."""
    spec = LayerSpec("conv", 6, 8, 3, out_size=9, weight_bits=bits, act_bits=bits)
    layers = [ElasticConv(spec, (3,), Quantizers((bits,), (bits,), True, activations, weights)) for _ in range(2)]
    x = tensor(shape=(5, 6, 9, 9)).relu().requires_grad_()
    first = layers[0]
    first.weight_quantizer.initialise(first.weight, first.ask_of_weight(spec))
    first.act_quantizer.initialise(x, first.ask(spec))
    filters = first.weight_quantizer(first.weight, first.ask_of_weight(spec))
    assert all(one.unique().numel() <= 2**bits for one in filters)
    assert 2 <= first.act_quantizer(x, first.ask(spec)).unique().numel() <= 2**bits
    y = first(x, spec, None)
    y.square().sum().backward()
    for leaf in (x, first.weight):
        assert leaf.grad.isfinite().all() and leaf.grad.abs().sum() > 0
    layers[1].load_state_dict(first.state_dict())
    assert torch.equal(layers[1](x, spec, None), first(x, spec, None))


@of_inputs
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("activation", [None, "relu", "hardswish"])
def test_values_lie_on_the_grid_that_it_answers(kind, signed, activation):
    x, ask = tensor(), Ask(3, signed, activation=activation, of_batch=not kind.counts_batches)
    quantizer = started(kind, x, ask)
    y = quantizer(x, ask)
    prepared, asked = quantizer.prepare(x, ask)
    grid = quantizer.grid(prepared, asked)
    codes, (low, high) = y / grid.step_size.abs(), integer_range(grid.bits, grid.signed)
    if grid.offset is not None:  # relative to the whole number next to it
        codes, low, high = (
            codes + grid.offset - grid.offset.round(),
            low - grid.offset.round(),
            high - grid.offset.round(),
        )
    assert y.shape == x.shape and (codes - codes.round()).abs().max() < 1e-3
    assert low - 1e-3 <= codes.min() and codes.max() <= high + 1e-3
    again = fake_quantize(prepared, grid.step_size, grid.bits, grid.signed, 1.0, grid.offset, grid.activation)
    assert torch.equal(again, y)


@of_weights
@pytest.mark.parametrize("bits", range(1, 9))
def test_levels_are_the_quantized_weights(kind, bits):
    w, ask = tensor(bits), Ask(bits, True)
    quantizer = started(kind, w, ask)
    codes, step, odd = quantizer.levels(w, ask)
    assert step.shape in ((), (len(w),)) and codes.shape == w.shape and (codes == codes.round()).all()
    torch.testing.assert_close(codes * step.view(-1, 1, 1, 1), quantizer(w, ask).detach(), atol=1e-6, rtol=1e-6)
    if odd:
        assert ((codes % 2).abs() == 1).all() and codes.abs().max() <= 2**bits - 1
    else:
        assert -(2 ** (bits - 1)) <= codes.min() and codes.max() <= 2 ** (bits - 1) - 1


@all_quantizers
def test_slots_are_independent_and_can_be_copied(kind):
    x, ask = tensor(), Ask(4, True, slot=1)
    quantizer = started(kind, x, ask, slots=3)
    for parameter in quantizer.parameters():
        assert parameter.shape[0] == 3
    alone = kind(None, len(x))
    alone.copy_slot(quantizer, 1, len(x))
    wanted = quantizer(x, ask._replace(of_batch=True))
    assert torch.equal(alone(x, ask._replace(slot=None, of_batch=True)), wanted)


@all_quantizers
def test_defaults_of_the_contract(kind):
    """Whoever reads a capability gets an answer of the promised kind."""
    x = tensor()
    quantizer = started(kind, x, Ask(4, False))
    assert isinstance(quantizer, Quantizer)
    for name in ("needs_result", "needs_extremes", "is_settled", "counts_batches"):
        assert isinstance(getattr(quantizer, name), bool)
    penalty = quantizer.penalty()
    assert penalty is None or (penalty.dim() == 0 and penalty >= 0)
    assert all(isinstance(offset, torch.nn.Parameter) for offset in quantizer.free_offsets())


@pytest.mark.parametrize("kind", [WEIGHT_QUANTIZERS[name] for name in WEIGHT_QUANTIZERS if name.startswith("lsq")])
def test_inherited_steps_double_for_every_bit(kind):
    w = tensor()
    quantizer = started(kind, w, Ask(4, True))
    step = quantizer.step_size.detach().clone()
    quantizer.drop_bits(2)
    assert torch.equal(quantizer.step_size.detach(), 4 * step)


def test_a_quantizer_must_say_what_its_grid_is():
    class Nothing(Quantizer):
        def __init__(self, slots=None, channels=1):
            super().__init__()

    with pytest.raises(TypeError, match="grid"):
        Nothing()
