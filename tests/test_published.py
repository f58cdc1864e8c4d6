import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from oncequant.elastic import ElasticConv
from oncequant.files import FileError
from oncequant.models.import_ofa import import_published, read_published

GOLDEN = Path(__file__).parent / "golden"


def made_up(name):
    """Random tensors with exactly the published keys and shapes."""
    shapes = json.loads((GOLDEN / f"state_dict_{name}.json").read_text())
    generator = torch.Generator().manual_seed(0)
    return {k: torch.rand(shape, generator=generator) + 0.1 for k, shape in shapes.items()}


@pytest.mark.parametrize("name, bits", [("ofa_supernet_w1.0", 32), ("ofa_supernet_w1.2", 32), ("oqa_supernet_w1.0", 4)])
@pytest.mark.parametrize("spelling", ["mobile_inverted_conv", "conv"])
def test_every_tensor_of_a_published_checkpoint_arrives(tmp_path, name, bits, spelling):
    state = made_up(name)
    written = {k.replace(".mobile_inverted_conv.", f".{spelling}."): v for k, v in state.items()}
    torch.save({"state_dict": written}, tmp_path / "net.pth")
    net = read_published(tmp_path / "net.pth", bits)
    used = sum(v.numel() for k, v in state.items() if not k.endswith("num_batches_tracked"))
    assert sum(v.numel() for v in net.state_dict().values()) == used
    # spot checks in every kind of place, one per naming rule
    prefix = "blocks.7.mobile_inverted_conv"  # stage 2, block 3
    block = net.stage2["block3"]
    exact = dict(atol=0, rtol=0)
    assert_close(block.expand.weight, state[f"{prefix}.inverted_bottleneck.conv.conv.weight"], **exact)
    assert_close(
        block.expand.norm.running_var, state[f"{prefix}.inverted_bottleneck.bn.bn.running_var"], atol=0, rtol=0
    )
    assert_close(block.depthwise.kernel_transforms["5"], state[f"{prefix}.depth_conv.conv.7to5_matrix"], **exact)
    assert_close(block.depthwise.kernel_transforms["3"], state[f"{prefix}.depth_conv.conv.5to3_matrix"], **exact)
    assert_close(block.se_expand.bias, state[f"{prefix}.depth_conv.se.fc.expand.bias"], **exact)
    assert_close(net.classifier.weight.flatten(1), state["classifier.linear.weight"], **exact)
    if bits < 32:
        assert block.project.weight_quantizer.step_size == state[f"{prefix}.point_linear.conv.conv.sw"]
        assert net.final_expand.act_quantizer.step_size == state["final_expand_layer.conv.sa"]
        assert not any(m.step_size.isnan() for m in net.modules() if hasattr(m, "step_size"))


def test_kernel_transform_equals_the_official_one():
    golden = json.loads((GOLDEN / "quantizers_oqa.json").read_text())["kernel_transform"]
    from oncequant.arch import LayerSpec

    layer = ElasticConv(LayerSpec("depthwise", 2, 2, kernel_size=7, depthwise=True), (3, 5, 7), None)

    def rule(n, a, m):
        return torch.tensor([(a * i) % m for i in range(n)], dtype=torch.float32)

    with torch.no_grad():
        layer.weight.copy_(((rule(98, 37, 101) - 50) / 50).view(2, 1, 7, 7))
        for k in (5, 3):
            layer.kernel_transforms[str(k)].copy_(
                torch.eye(k * k) + ((rule(k**4, 13, 17) - 8) / 160).view(k * k, k * k)
            )
    for k in (7, 5, 3):
        ours = layer.sliced_weight(LayerSpec("depthwise", 2, 2, kernel_size=k, depthwise=True))
        assert_close(ours.flatten(), torch.tensor(golden[f"filter_{k}"]), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda s: s.pop("classifier.linear.weight"), "classifier.weight"),
        (lambda s: s.update(surprise=torch.zeros(1)), "surprise"),
        (lambda s: s.update({"feature_mix_layer.conv.weight": torch.zeros(2, 2)}), "feature_mix.weight has shape"),
        (lambda s: s.pop("first_conv.conv.weight"), "first_conv"),
    ],
)
def test_foreign_state_dicts_are_refused(damage, message):
    state = made_up("ofa_supernet_w1.0")
    damage(state)
    with pytest.raises(ValueError, match=message):
        import_published(state)


def test_bits_must_agree_with_the_checkpoint():
    with pytest.raises(ValueError, match="give its bits"):
        import_published(made_up("oqa_supernet_w1.0"))
    with pytest.raises(ValueError, match="no step sizes for 4 bits"):
        import_published(made_up("ofa_supernet_w1.0"), 4)


def test_a_hostile_file_is_not_executed(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"state_dict": Hostile()}, tmp_path / "net.pth")
    with pytest.raises(FileError, match="not a readable checkpoint"):
        read_published(tmp_path / "net.pth")
    assert not (tmp_path / "executed").exists()
