"""The exported files: what is in them, how they are read, fed and refused."""

import errno
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from small_export import CLASSES, MEAN, STD, lowered, nano4, preset, subnet_of

from oncequant.arch import Arch
from oncequant.data import eval_batches, load_data
from oncequant.export.c import write_c
from oncequant.export.lower import network_input
from oncequant.export.onnx_writer import write_onnx
from oncequant.export.package import DeployedNetwork, load_package, write_package
from oncequant.export.simulate import run_integer
from oncequant.files import FileError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_files_hold_low_bit_weights_at_their_bits(bits, tmp_path):
    subnet, arch = subnet_of(preset("cifar", bits), resolution=20)
    graph = lowered(subnet, arch)
    write_package(graph, tmp_path)
    write_onnx(graph, tmp_path / "model.onnx")
    layers = [node.weights for node in graph.nodes if node.weights]
    ideal = sum(weights.weight.numel() * weights.bits / 8 for weights in layers)
    channels = sum(len(weights.weight) for weights in layers)
    package = (tmp_path / "model.safetensors").stat().st_size + (tmp_path / "model.json").stat().st_size
    # scale and bias of every channel, and a description of every layer
    assert package < ideal + 8 * channels + 1500 * len(layers)
    assert (tmp_path / "model.onnx").stat().st_size < ideal + 8 * channels + 1700 * len(layers)


def test_the_onnx_file_says_what_it_is(tmp_path):
    _, arch, graph = nano4()
    write_onnx(graph, tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    props = {prop.key: prop.value for prop in model.metadata_props}
    assert Arch.from_json(props["oncequant.arch"]) == arch
    assert tuple(json.loads(props["oncequant.classes"])) == CLASSES
    assert json.loads(props["oncequant.mean"]) == list(MEAN[1]) and json.loads(props["oncequant.std"]) == list(STD[1])
    assert json.loads(props["oncequant.weight_bits"]) == [4, 8] and props["oncequant.version"]
    assert model.ir_version == 10 and model.opset_import[0].version == 21


def test_loading_a_package_imports_no_supernet_code(tmp_path):
    _, arch, graph = nano4()
    write_package(graph, tmp_path)
    script = f"""
import sys, torch
from oncequant.export.package import load_package
net = load_package({str(tmp_path)!r})
print(net(torch.zeros(2, 1, {graph.resolution}, {graph.resolution})).shape, dict(net.graph.arch) == {dict(arch)})
supernet = ("oncequant.models", "oncequant.elastic", "oncequant.quantizers", "onnx")
print([module for module in sys.modules if module.startswith(supernet)])
"""
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert output.split("\n")[:2] == ["torch.Size([2, 10]) True", "[]"]


def test_a_package_names_the_size_it_expects(tmp_path):
    _, _, graph = nano4()
    write_package(graph, tmp_path)
    with pytest.raises(ValueError, match=r"expected images of shape \(N, \*\(1, "):
        load_package(tmp_path)(torch.zeros(1, 1, 99, 99))


@pytest.mark.parametrize("image", [
    Image.fromarray(np.arange(23 * 31, dtype=np.uint16).reshape(23, 31) * 80),
    Image.effect_mandelbrot((40, 33), (-2, -1, 1, 1), 50).convert("LA"),
    np.arange(256, dtype=np.uint8).reshape(16, 16),
])  # fmt: skip
def test_a_package_prepares_images_as_training_did(image, tmp_path):
    _, _, graph = nano4()
    graph = replace(graph, arch=graph.arch.replace(resolution=12))
    write_package(graph, tmp_path)
    rows = [(image, 0), (image, 1)]
    data = load_data((rows, rows, rows), size=16)
    graph = replace(graph, mean=data.mean, std=data.std)
    expected = network_input(graph, next(eval_batches(data, data.test))[0])[:1]
    prepared = load_package(tmp_path).prepare(image)
    assert prepared.shape == (1, 1, 12, 12) and torch.allclose(prepared, expected, atol=1e-2)


def scene(mode, size=(61, 47)):
    """A picture with edges and slopes, so that a wrong range, orientation, crop or ground shows."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    planes = [x, y**2, (x * 5 % 1 > 0.4) * 0.8, (y < 0.6) * 0.7 + 0.1]
    image = Image.fromarray((np.stack(planes, 2) * 255).astype(np.uint8), "RGBA")
    return image if mode == "RGBA" else image.convert("RGB").convert(mode)


def sixteen_bits(dtype=np.uint16):
    return Image.fromarray((np.asarray(scene("L")).astype(int) * 257 ^ 3).astype(dtype))


def rotated(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


KINDS = {  # every kind of picture that training reads: file name -> picture, options of saving
    "grey.png": (scene("L"), {}),
    "colour.bmp": (scene("RGB"), {}),
    "one_bit.png": (scene("1"), {}),
    "one_bit.tif": (scene("1"), {}),
    "palette.png": (scene("P"), {}),
    "palette.gif": (scene("P"), {}),
    "palette_transparent.png": (scene("P"), {"transparency": 7}),
    "palette_alpha.tif": (scene("RGBA").convert("PA"), {}),
    "transparent.png": (scene("RGBA"), {}),
    "transparent.webp": (scene("RGBA"), {"lossless": True}),
    "grey_transparent.png": (scene("RGBA").convert("LA"), {}),
    "colour_key.png": (scene("RGB"), {"transparency": (0, 0, 0)}),
    "sixteen.png": (sixteen_bits(), {}),
    "sixteen.tif": (sixteen_bits(), {}),
    "sixteen_big_endian.tif": (sixteen_bits(">u2"), {}),
    "thirty_two.tif": (sixteen_bits(np.int32), {}),
    "float.tif": (Image.fromarray(np.asarray(scene("L"), np.float32) / 255), {}),
    "cmyk.jpg": (scene("CMYK"), {}),
    "cmyk.tif": (scene("CMYK"), {}),
    "small.jpg": (scene("RGB", (9, 30)), {}),
    "large.jpg": (scene("RGB", (407, 300)), {}),
    "large_grey.jpg": (scene("L", (200, 311)), {}),
    **{f"rotated{n}.jpg": (scene("RGB", (90, 70)), rotated(n)) for n in (3, 6, 8)},
    "rotated_large.jpg": (scene("RGB", (500, 301)), rotated(5)),
    "rotated.png": (scene("RGBA"), rotated(6)),
}


@pytest.fixture(scope="module")
def docs_prepare():
    """The function in docs/export.md that prepares pictures for other runtimes."""
    page = (Path(__file__).parent.parent / "docs" / "export.md").read_text()
    names = {}
    exec(re.search(r"^```python\n(import json.*?)^session = ", page, re.MULTILINE | re.DOTALL)[1], names)
    return names["prepare"]


@pytest.fixture(scope="module")
def graphs():
    subnet, arch = subnet_of(preset("cifar", 4), resolution=20)
    return {1: nano4()[2], 3: lowered(subnet, arch)}


@pytest.mark.parametrize("channels, stored, side", [(1, 24, 24), (1, 28, 12), (3, 24, 16), (3, 32, 32)])
def test_the_docs_prepare_every_kind_of_picture_as_training_does(
    channels, stored, side, docs_prepare, graphs, tmp_path
):
    graph = graphs[channels]
    graph = replace(graph, arch=graph.arch.replace(resolution=side), image_size=stored)
    network = DeployedNetwork(graph)
    for name, (image, options) in KINDS.items():
        image.save(tmp_path / name, **options)
        expected = network.prepare(tmp_path / name)
        pixels = docs_prepare(tmp_path / name, channels, stored, side)
        assert pixels.dtype == np.float32 and pixels.shape == (1, channels, side, side)
        assert np.abs(pixels - expected.numpy()).max() <= 0.01, name
        assert expected.std() > 20 and len(expected.unique()) > 50, name  # the picture is there


def test_kinds_of_pictures_are_all_that_training_tells_apart(tmp_path):
    modes = set()
    for name, (image, options) in KINDS.items():
        image.save(tmp_path / name, **options)
        with Image.open(tmp_path / name) as opened:
            modes.add(opened.mode)
    assert modes >= {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I;16", "I;16B", "I", "F"}


def test_the_example_in_the_docs_feeds_what_training_fed(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parent.parent / "docs" / "export.md").read_text()
    with_classifier, with_runtime, with_package, with_c, *_ = re.findall(
        r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL
    )
    _, _, graph = nano4()
    graph = replace(graph, arch=graph.arch.replace(resolution=12))
    folder = tmp_path / "runs" / "digits" / "exports" / "2bit-L"
    write_package(graph, folder)
    write_onnx(graph, folder / "model.onnx")
    write_c(graph, folder)
    Image.fromarray((load_digits().images[7] * 15).astype(np.uint8)).resize((40, 32)).save(tmp_path / "seven.png")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(with_runtime, names)
    exec(with_package, names)
    first, second = capsys.readouterr().out.split()
    assert first == second and first in CLASSES
    exec(with_classifier, names)
    seven, eight = capsys.readouterr().out.splitlines()
    assert seven.startswith(f"seven.png ('{first}', ") and eight == "eight.png () () does not exist"
    difference = torch.from_numpy(names["pixels"]) - names["network"].prepare("seven.png")
    assert difference.abs().max() <= 0.01
    exec(with_c, names)
    logits = run_integer(graph, names["pixels"].float())
    assert torch.equal(names["network"](names["pixels"]), logits)
    assert capsys.readouterr().out.split() == [CLASSES[logits.argmax()]]


def flip_byte(path):
    content = bytearray(path.read_bytes())
    content[-100] ^= 4
    path.write_bytes(content)


DAMAGE = {
    "no json": (lambda d: (d / "model.json").unlink(), "does not exist"),
    "no tensors": (lambda d: (d / "model.safetensors").unlink(), "does not exist"),
    "cut json": (lambda d: os.truncate(d / "model.json", 500), "not a readable JSON"),
    "cut tensors": (lambda d: os.truncate(d / "model.safetensors", 5000), "not a readable safetensors"),
    "empty tensors": (lambda d: os.truncate(d / "model.safetensors", 0), "not a readable safetensors"),
    "flipped bit": (lambda d: flip_byte(d / "model.safetensors"), "changed or damaged"),
    "flipped json": (lambda d: flip_byte(d / "model.json"), "changed or damaged|not a readable JSON"),
    "edited json": (lambda d: edit(d, lambda j: j["content"]["arch"].update(resolution=9)), "changed or damaged"),
    "foreign json": (lambda d: (d / "model.json").write_text("[1]"), "is not 'oncequant package 2'"),
    "newer": (lambda d: edit(d, lambda j: j.update(format="oncequant package 3")), "its format is '.* 3'"),
    "pickle": (lambda d: torch.save({"a": 1}, d / "model.safetensors"), "not a readable safetensors"),
}


def edit(folder, change):
    description = json.loads((folder / "model.json").read_text())
    change(description)
    (folder / "model.json").write_text(json.dumps(description))


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_packages_are_refused(damage, tmp_path):
    _, _, graph = nano4()
    write_package(graph, tmp_path)
    act, message = DAMAGE[damage]
    act(tmp_path)
    with pytest.raises(FileError, match=message):
        load_package(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["nodes"].pop(),
        lambda c: c["nodes"][3]["weights"]["shape"].append(7),
        lambda c: c["nodes"][3].update(op="eval"),
        lambda c: c["nodes"][3].update(inputs=["classifier"]),
        lambda c: c.pop("mean"),
        lambda c: c["arch"].pop("resolution"),
        lambda c: c.update(nodes=c["nodes"][:2]),
        lambda c: c["nodes"][2].update(grid={"stepp": 1}),
    ],
)
def test_inconsistent_packages_are_refused_even_with_right_hashes(change, tmp_path):
    from oncequant.export.package import _content_hash

    _, _, graph = nano4()
    write_package(graph, tmp_path)

    def forge(description):
        change(description["content"])
        description["content_sha256"] = _content_hash(description["content"])

    edit(tmp_path, forge)
    with pytest.raises(FileError, match="inconsistent"):
        load_package(tmp_path)


@pytest.mark.parametrize("write, name", [(write_onnx, "model.onnx"), (write_package, ".")])
def test_a_full_disk_leaves_no_half_file(write, name, tmp_path, monkeypatch):
    _, _, graph = nano4()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(FileError, match="No space left"):
        write(graph, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_an_impossible_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="model.onnx"):
        write_onnx(nano4()[2], tmp_path / "file" / "model.onnx")


def test_paths_may_be_text(tmp_path):
    write_package(nano4()[2], str(tmp_path))
    assert load_package(str(tmp_path)).graph.classes == CLASSES
    assert Path(tmp_path / "model.json").exists()
