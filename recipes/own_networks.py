"""Networks that torchvision and timm build, as a user's own: traced or refused, logits, exported at mixed bits.

Every network has random weights and batch norms that are not neutral, images of 64 px (Inception 96), 1,000 classes.
Each layer but the first and the last gets random bit-widths of weights and inputs; step sizes start from the weights
and one batch. A row says how far the float logits are from the module's, as a part of the largest, and on how many
images ONNX Runtime with all optimisations, and the compiled C, give the logits of the integer simulator, bit for bit.
Nothing is trained or downloaded.

torchvision needs the torch that it was built for, so this runs in an environment of its own:

    python3 -m venv .venv-others
    .venv-others/bin/pip install torch==2.14.1 torchvision==0.29.1 timm
    .venv-others/bin/pip install -c constraints.txt -e ".[export]" --no-deps
    .venv-others/bin/pip install safetensors scikit-learn scipy threadpoolctl filelock pymoo tyro rich tensorboard \\
        onnx onnxruntime
    OMP_NUM_THREADS=1 .venv-others/bin/python recipes/own_networks.py results/own-networks_cpu_202611.csv

A quarter of an hour of one core. Result: results/README.md#networks-of-others
"""

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import timm
import torch
import torchvision
from torch import nn

from oncequant.export.c import write_c
from oncequant.export.compiled import load_compiled
from oncequant.export.graph import Graph
from oncequant.export.lower import lower, network_input
from oncequant.export.onnx_runtime import kernel_counts, run_onnx, session
from oncequant.export.onnx_writer import write_onnx
from oncequant.export.package import load_package, write_package
from oncequant.export.program import program
from oncequant.export.simulate import run_float, run_integer
from oncequant.files import write_csv
from oncequant.measure import calibrated_subnet, initialise_quantizers
from oncequant.models import build_network
from oncequant.models.own import from_text
from oncequant.models.trace import TraceError, float_network, own_network
from oncequant.structure import CannotRun

SIZE, IMAGES = 64, 16
COMPILED = 13_000_000  # parameters, at most: a file in C has its weights as text
LARGER = {"inception_v3": 96}  # which does not take images of 64 px
BITS = dict(weight_bits=(2, 3, 4, 6, 8), act_bits=(2, 3, 4, 6, 8), steps_per_bits=True)
TORCHVISION = (
    "mobilenet_v2 mobilenet_v3_small mobilenet_v3_large resnet18 resnet50 efficientnet_b0 regnet_x_400mf "
    "regnet_y_400mf shufflenet_v2_x1_0 squeezenet1_1 densenet121 mnasnet1_0 googlenet inception_v3 "
    "convnext_tiny"
)
TIMM = (
    "ghostnet_100 efficientnet_b0 mobilenetv3_small_100 mobilenetv4_conv_small resnet26d regnety_004 densenet121 "
    "repvgg_a0 res2net50_26w_4s dla34 mixnet_s rexnet_100 ghostnetv2_100 hrnet_w18_small"
)
REQUIRED = (
    "mobilenet_v2 mobilenet_v3_small mobilenet_v3_large resnet18 resnet50 efficientnet_b0 regnet_x_400mf "
    "regnet_y_400mf shufflenet_v2_x1_0 squeezenet1_1 densenet121 mnasnet1_0 ghostnet_100"
).split()


def network(library: str, name: str) -> nn.Module:
    """A network with random weights; its batch norms have statistics and gains as if it had been trained."""
    torch.manual_seed(0)
    if library == "timm":
        module = timm.create_model(name, pretrained=False)
    else:
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        module = torchvision.models.get_model(name, weights=None, **options)
    for each in module.modules():
        if isinstance(each, nn.BatchNorm2d):
            nn.init.uniform_(each.weight, 0.5, 1.5)
            nn.init.normal_(each.bias, std=0.1)
            nn.init.normal_(each.running_mean, std=0.1)
            nn.init.uniform_(each.running_var, 0.5, 1.5)
    return module.eval()


def row(library: str, name: str) -> dict[str, object]:
    """What became of a network."""
    size, start = LARGER.get(name, SIZE), time.monotonic()
    module, images = network(library, name), torch.randn(IMAGES, 3, size, size)
    found: dict[str, object] = {"library": library, "network": name, "required": name in REQUIRED, "size": size}
    found["refused"] = ""
    try:
        own = own_network(module, images)
    except TraceError as error:
        return {**found, "refused": str(error)}
    net = float_network(own)
    with torch.no_grad():
        expected = module(images)
        difference = (net(images, net.space.largest()) - expected).abs().max() / expected.abs().max()
    found["layers"] = sum(step.op == "layer" for step in from_text(own.config.network)[2])
    found["parameters"] = sum(parameter.numel() for parameter in module.parameters())
    found["largest_difference"] = f"{difference.item():.1e}"
    config = replace(own.config, **BITS)
    net = build_network(config)
    net.load_state_dict(own.weights, strict=False)
    initialise_quantizers(net, images)
    arch = net.space.sample(np.random.default_rng(1))
    subnet = calibrated_subnet(net, arch, [(images, None)])
    classes = tuple(map(str, range(config.num_classes)))
    graph = lower(subnet, arch, (0.5,) * 3, (0.25,) * 3, classes, size, [(images, None)])
    pixels = network_input(graph, torch.randn(IMAGES, 3, size, size))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "model.onnx"
        write_onnx(graph, path)
        write_package(graph, Path(folder))
        equal = (run_onnx(session(path), pixels) == run_integer(graph, pixels)).all(1)
        found["images"], found["bit_equal_images"] = IMAGES, int(equal.sum())
        found["integer_layers"], found["float_layers"] = kernel_counts(path)
        found["package_equal"] = torch.equal(load_package(folder)(pixels), run_float(graph, pixels))
        found["onnx_kb"] = round(path.stat().st_size / 1000)
    found["float_kb"] = round(4 * int(found["parameters"]) / 1000)
    found |= in_c(graph, pixels.round().to(torch.uint8), int(found["parameters"]) <= COMPILED)
    found["seconds"] = round(time.monotonic() - start, 1)
    return found


def in_c(graph: Graph, pixels: torch.Tensor, compiles: bool) -> dict[str, object]:
    """Whether kernels in C run it, or why not; if compiled, on how many images it gives the simulator's logits."""
    try:
        program(graph)
    except CannotRun as error:
        return {"in_c": str(error), "c_equal_images": ""}
    if not compiles:
        return {"in_c": "yes", "c_equal_images": ""}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        write_c(graph, Path(folder))
        equal = (load_compiled(folder, 1)(pixels) == run_integer(graph, pixels.float())).all(1)
    return {"in_c": "yes", "c_equal_images": int(equal.sum())}


def main(out: Path) -> None:
    """All networks; the table is written after each."""
    torch.set_num_threads(1)
    rows = []
    for library, names in (("torchvision", TORCHVISION), ("timm", TIMM)):
        for name in names.split():
            rows.append(row(library, name))
            print(rows[-1], flush=True)
            write_csv(out, rows)
    traced = [each for each in rows if not each["refused"]]
    print(
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, timm {timm.__version__}: {len(traced)} of"
    )
    print(f"{len(rows)} traced, {sum(each['bit_equal_images'] == IMAGES for each in traced)} bit-equal on all images")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
