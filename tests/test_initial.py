"""Training that starts from weights: of another run, of OFA, of standard residual networks."""

import json
from dataclasses import replace

import pytest
import torch
from commands import DIGITS_TRAINING, call, fails, image_folder
from small_training import CONFIG, TINY, assert_equal_runs, digits
from test_published import made_up

from oncequant.files import FileError, read_json, write_json
from oncequant.initial import start_from
from oncequant.methods import oqat
from oncequant.models import PRESETS, build_network
from oncequant.run_folder import Run
from oncequant.supernet_file import save_supernet
from oncequant.tensor_files import read_tensors

ONE_BLOCK = dict(stage_widths=(16, 32, 64), width_quarters=(4,), expand_ratios=(4,), depths=(1,), max_depths=())
SMALL = replace(PRESETS["resnet-cifar"], **ONE_BLOCK)


def network(config, seed=0):
    torch.manual_seed(seed)
    net = build_network(config)
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.uniform_(0.5, 1.5)
    return net


def test_a_run_gives_all_but_its_classes(tmp_path):
    before, net = network(TINY, 1), network(replace(TINY, num_classes=4), 2)
    old = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    save_supernet(tmp_path, "float", before)
    said = start_from(net, str(tmp_path))
    total = len(old)
    assert f"{total - 2} of {total} tensors taken; these start anew: classifier.weight (10 x 16 x 1 x 1 there" in said
    for name, tensor in net.state_dict().items():
        wanted = old if name.startswith("classifier") else before.state_dict()
        assert torch.equal(tensor, wanted[name]), name
    same = start_from(network(TINY, 3), str(tmp_path / "float.safetensors"))
    assert same.endswith(f"{total} of {total} tensors taken")


def test_as_many_classes_of_other_names_start_anew(tmp_path):
    save_supernet(tmp_path, "float", network(TINY, 1))
    for names, taken in ((list("0123456789"), True), (list("abcdefghij"), False)):
        write_json(tmp_path / "run.json", {"data": {"classes": names}})
        said = start_from(network(TINY, 2), str(tmp_path), tuple("0123456789"))
        assert ("these start anew: classifier.weight, classifier.bias" not in said) == taken


@pytest.mark.parametrize("there, here", [(1, 3), (3, 1)])
def test_images_of_other_colours(there, here, tmp_path):
    before, net = network(replace(TINY, image_channels=there)), network(replace(TINY, image_channels=here), 1)
    save_supernet(tmp_path, "float", before)
    assert "start anew" not in start_from(net, str(tmp_path))
    grey = torch.rand(2, 1, 8, 8)  # a picture in grey is the same in either
    stems = [torch.nn.functional.conv2d(grey.expand(-1, n.config.image_channels, -1, -1), n.stem.weight)
             for n in (before, net)]  # fmt: skip
    assert torch.allclose(*stems, atol=1e-5)


def test_a_published_checkpoint(tmp_path):
    state = made_up("ofa_supernet_w1.0")
    torch.save({"state_dict": state}, tmp_path / "ofa.pth")
    net = network(replace(PRESETS["imagenet"], num_classes=5))
    said = start_from(net, str(tmp_path / "ofa.pth"))
    assert "; these start anew: classifier.weight (1000 x 1280 there, 5 x 1280 x 1 x 1 here), classifier.bias" in said
    key = "blocks.7.mobile_inverted_conv.inverted_bottleneck.conv.conv.weight"
    assert torch.equal(net.stage2["block3"].expand.weight, state[key])


def standard(config):
    """A residual network of one block a stage, in the names of common implementations."""
    stem, (first, *_), shapes = 16, config.stage_widths, {}
    shapes["conv1.weight"], widths = (stem, 3, 3, 3), [first, *config.stage_widths]
    norms = {"bn1": stem}
    for number, (inside, width) in enumerate(zip(widths, config.stage_widths), start=1):
        place = f"layer{number}.0"
        shapes |= {f"{place}.conv1.weight": (width, inside, 3, 3), f"{place}.conv2.weight": (width, width, 3, 3)}
        norms |= {f"{place}.bn1": width, f"{place}.bn2": width}
        if number > 1:
            shapes[f"{place}.downsample.0.weight"], norms[f"{place}.downsample.1"] = (width, inside, 1, 1), width
    shapes |= {"fc.weight": (10, config.stage_widths[-1]), "fc.bias": (10,)}
    for name, width in norms.items():
        shapes |= {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}
    return {f"module.{name}": torch.rand(shape) for name, shape in shapes.items()}


def test_a_standard_residual_network(tmp_path):
    state = standard(SMALL)
    torch.save(state | {"module.bn1.num_batches_tracked": torch.tensor(3)}, tmp_path / "net.pth")
    net = network(SMALL)
    assert start_from(net, str(tmp_path / "net.pth")).endswith(f"{len(state)} of {len(state)} tensors taken")
    assert torch.equal(net.stage2["block1"].shortcut.norm.weight, state["module.layer2.0.downsample.1.weight"])
    assert torch.equal(net.classifier.weight.flatten(1), state["module.fc.weight"])


def test_weights_of_another_network_are_refused(tmp_path):
    save_supernet(tmp_path, "float", network(TINY))
    with pytest.raises(FileError, match=r"only \d+ of \d+ tensors fit this network; missing or .* Use the --preset"):
        start_from(network(SMALL), str(tmp_path))
    with pytest.raises(FileError, match="only"):
        start_from(network(replace(TINY, width=2.0)), str(tmp_path))


def test_training_from_weights_goes_on_bit_by_bit(tmp_path, monkeypatch):
    save_supernet(tmp_path, "float", network(TINY, 5))
    cfg = replace(CONFIG, init=str(tmp_path))
    oqat.train(cfg, Run(tmp_path / "a", TINY, digits()))
    start = read_tensors(tmp_path / "float.safetensors")[0]["stem.weight"]
    end = read_tensors(tmp_path / "a" / "float.safetensors")[0]["stem.weight"]
    assert 0 < (end - start).norm() / start.norm() < 1.5  # trained from there
    monkeypatch.setattr("oncequant.sandwich.sandwich_step", stopping(after=3))
    with pytest.raises(KeyboardInterrupt):
        oqat.train(cfg, Run(tmp_path / "b", TINY, digits()))
    monkeypatch.undo()
    (tmp_path / "float.safetensors").rename(tmp_path / "moved.safetensors")  # they are in the checkpoint by now
    with pytest.raises(FileError, match="does not exist"):
        oqat.train(cfg, Run(tmp_path / "c", TINY, digits()))
    (tmp_path / "moved.safetensors").rename(tmp_path / "float.safetensors")
    oqat.train(cfg, Run(tmp_path / "b", TINY, digits()))
    assert_equal_runs(tmp_path / "a", tmp_path / "b")


def stopping(after):
    from oncequant.sandwich import sandwich_step

    def step(*args, **kwargs):
        nonlocal after
        if (after := after - 1) < 0:
            raise KeyboardInterrupt
        return sandwich_step(*args, **kwargs)

    return step


@pytest.mark.parametrize("method", ["oqat", "qfa"])
def test_commands_start_from_another_run(method, digits_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = image_folder(tmp_path / "pictures", classes=2, per_class=20, size=12, mode="L")
    words = [word for word in DIGITS_TRAINING if method == "oqat" or word not in ("--bit-schedule", "4", "2")]
    words = [*words, "--expand-ratios", "2", "3"] if method == "qfa" else words
    (tmp_path / "before").symlink_to(digits_run)
    where = "--data", data, "--preset", "resnet-nano", "--run", "run", "--init", "before"
    call(monkeypatch, "train", method, *where, *words)
    said = capsys.readouterr().out
    assert f"weights of {digits_run.resolve()}: " in said and "these start anew: classifier.weight" in said
    options = read_json(tmp_path / "run" / "run.json")["method_config"]
    assert options["init"] == str(digits_run.resolve())


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere.pth", "nowhere.pth does not exist"),
        ("", "--init: its value is empty text"),
        ("empty", "float.safetensors does not exist: stages in this run are none yet"),
        ("text.pth", "text.pth is not a readable checkpoint"),
        ("list.pth", "does not hold tensors by name"),
        ("cut.safetensors", "is not a readable safetensors file"),
        ("other.pth", "only 0 of"),
    ],
)
def test_one_line_for_what_cannot_be_started_from(place, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pth").write_text("weights")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "cut.safetensors").write_bytes(json.dumps({}).encode())
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    status = 2 if not place else 1
    assert message in fails(monkeypatch, capsys, "train", "--run", "run", "--init", place, status=status)
    assert not (tmp_path / "run").exists()


def test_the_float_stage_learns_slower_from_weights():
    plain, from_weights = (replace(CONFIG, init=init).schedule("float", digits()) for init in (None, "somewhere"))
    assert from_weights.muon_lr == pytest.approx(0.6 * plain.muon_lr)
    assert from_weights.lr == pytest.approx(0.6 * plain.lr) and from_weights.steps == plain.steps
    lower = [replace(CONFIG, init=init).schedule("4bit", digits()) for init in (None, "somewhere")]
    assert lower[0] == lower[1]
