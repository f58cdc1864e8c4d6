"""`oncequant card` and `oncequant push`: an exported network, and what one must know of it, for the Hugging Face hub.

The card is README.md of the exported folder, `config.json` what the hub's programs look for beside `model.safetensors`.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oncequant.arch import FLOAT_BITS
from oncequant.cost import shown_costs
from oncequant.cost_table import run_costs
from oncequant.export.format import CARD_FILES
from oncequant.export.formats import exports_table
from oncequant.export.package import DESCRIPTION, load_package
from oncequant.files import FileError, read_object, write_atomically, write_json
from oncequant.intervals import share_interval
from oncequant.methods import METHODS
from oncequant.records import Export, Member, read_exports, read_records

CARD, CONFIG = CARD_FILES


def write_card(run_dir: Path, name: str) -> Path:
    """Write README.md and config.json into the folder of an exported network; returns it.

    Raises FileError if there is no such export, if its files cannot be trusted, or if a later search gave its name to
    another network."""
    export, member = _export(run_dir, name)
    folder = run_dir / export.folder
    network = load_package(folder)
    about, graph = read_object(run_dir / "run.json", "data", "method", "device"), network.graph
    labels = {str(i): label for i, label in enumerate(graph.classes)}
    config = {
        "library_name": "oncequant",
        "architectures": ["DeployedNetwork"],
        "model_type": "oncequant",
        "id2label": labels,
        "label2id": {label: int(i) for i, label in labels.items()},
        "num_channels": graph.channels,
        "image_size": graph.image_size,
        "resolution": graph.resolution,
        "image_mean": list(graph.mean),
        "image_std": list(graph.std),
    }
    write_json(folder / CONFIG, config)
    sections = [
        _front_matter(name, about, export),
        f"# {name}, trained on {_plain(about['data']['name'])}",
        _what(about, member, graph),
        _accuracy(about, export, member),
        _size(run_dir, member, export),
        _bits(graph),
        _use(name, folder),
        _made(run_dir, about),
    ]
    write_atomically(folder / CARD, "\n\n".join(sections).encode() + b"\n")
    return folder


def push(run_dir: Path, name: str, repository: str, private: bool = False) -> str:
    """Upload an exported network with its card to a repository of the hub, which is made if there is none; returns its
    address. Who uploads is told by `hf auth login` or HF_TOKEN. Raises FileError."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ValueError(f"{repository}: a repository of the hub is called OWNER/NAME")
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise FileError("uploading needs one more package: pip install huggingface_hub") from error
    folder = write_card(run_dir, name)
    try:
        api = HfApi()
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message=f"oncequant: {name}")
    except Exception as error:  # network, authorisation, names: of several kinds, which tell what it is
        raise FileError(f"{repository} cannot be uploaded: {' '.join(str(error).split())}") from error
    return str(address)


def _export(run_dir: Path, name: str) -> tuple[Export, Member]:
    """The entry of an export whose files can be trusted, and of the network. Raises FileError."""
    exports = {export.name: export for export in read_exports(run_dir)}
    members = {member.name: member for member in read_records(run_dir / "family.json", Member)}
    write = f"`oncequant export {run_dir} {name}` writes it"
    if name not in exports:
        there = ", ".join(exports) or "none"
        raise FileError(f"{run_dir} has no exported network {name!r}, there are {there}; {write} if it was chosen")
    export, member = exports[name], members.get(name)
    if member is None or not export.is_of(member):
        raise FileError(f"{run_dir}: the files of {name} are of an earlier search; {write} anew")
    if export.problems:
        raise FileError(f"{run_dir}: {name} cannot be trusted: {'; '.join(export.problems)}")
    if not (run_dir / export.folder / DESCRIPTION).exists():
        raise FileError(f"{run_dir}: {name} was exported without the format package; {write} with it")
    return export, member


def _front_matter(name: str, about: dict[str, Any], export: Export) -> str:
    """What the hub reads; JSON is YAML, too."""
    top1 = round(100 * _deployed(export), 2)
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"name": about["data"]["name"], "type": re.sub(r"\W+", "-", about["data"]["name"]), "split": "test"},
        "metrics": [{"type": "accuracy", "name": "top-1 %", "value": top1}],
    }
    lines = [
        "library_name: oncequant",
        "pipeline_tag: image-classification",
        "tags: [quantization, neural-architecture-search, onnx, safetensors]",
        f"model-index: {json.dumps([{'name': name, 'results': [result]}])}",
    ]
    return "\n".join(["---", *lines, "---"])


def _what(about: dict[str, Any], member: Member, graph: Any) -> str:
    precision = {FLOAT_BITS: "in float", None: "of mixed precision"}.get(member.bits, f"of {member.bits} bits")
    colours = "grey" if graph.channels == 1 else "colour"
    method = (METHODS[about["method"]].__doc__ or about["method"]).partition(". ")[0]
    return (
        f"An image classifier {precision}, for pictures in {colours}, which it sees at {graph.resolution} x "
        f"{graph.resolution} px. It tells {len(graph.classes)} classes apart: {', '.join(map(_plain, graph.classes))}. "
        f"Made by oncequant: {method}."
    )


def _accuracy(about: dict[str, Any], export: Export, member: Member) -> str:
    """Accuracies with intervals; the network was chosen by that on validation images."""
    data, rows = about["data"], []
    measured = [
        ("test, the files in ONNX Runtime", _deployed(export), data["test"]),
        ("test, balanced over classes, in training's arithmetic", member.balanced_test, data["test"]),
        ("validation, by which it was chosen", member.top1_validation, data["validation"]),
    ]
    for what, share, images in measured:
        if share is not None:
            low, high = share_interval(share, images)
            interval = "" if "balanced" in what else f"{100 * low:.1f} to {100 * high:.1f}"
            rows.append([what, f"{100 * share:.2f}", interval, str(images)])
    table = _table(["accuracy", "%", "95 % interval", "images"], rows)
    note = (
        "Intervals say how far other pictures of the same kind may lead, by Wilson's formula. They do not include what "
        "another training would change. The accuracy on validation images is too high by a little, since the network "
        "was chosen by it."
    )
    return f"## Accuracy\n\n{table}\n\n{note}"


def _size(run_dir: Path, member: Member, export: Export) -> str:
    shown = shown_costs([member.costs], run_costs(run_dir))
    costs = [[cost.label, f"{member.costs[cost.name]:,.0f} {cost.unit}".strip()] for cost in shown]
    files = exports_table([export.found], part="rest")
    judged = _table(files.columns, files.texts)
    return f"## Size\n\n{_table(['cost', ''], costs)}\n\n## Verification\n\n{judged}\n\n{files.notes}"


def _bits(graph: Any) -> str:
    """Bit-widths of the weights and the inputs of every layer."""
    grids = {node.name: node.grid for node in graph.nodes if node.grid is not None}
    rows = []
    for node in graph.nodes:
        if node.weights is not None:
            grid = grids.get(node.inputs[0])
            shape = " x ".join(map(str, node.weights.weight.shape))
            both = node.weights.bits, grid.bits if grid else FLOAT_BITS
            rows.append([f"`{node.name}`", shape, *("float" if bits == FLOAT_BITS else str(bits) for bits in both)])
    return f"## Bits\n\n{_table(['layer', 'weights', 'bits of weights', 'bits of inputs'], rows)}"


def _use(name: str, folder: Path) -> str:
    lines = ["oncequant predict . path/to/pictures"] if (folder / "model.onnx").exists() else []
    shell = f"\n\n```sh\n{lines[0]}\n```" if lines else ""
    return (
        f"## Use\n\nIn this folder, with oncequant:{shell}\n\n```python\nfrom oncequant import load_package\n\n"
        'network = load_package(".")  # or "hf://OWNER/NAME": a plain nn.Module\n'
        'logits = network(network.prepare("picture.jpg"))\nprint(network.graph.classes[logits.argmax()])\n```'
    )


def _made(run_dir: Path, about: dict[str, Any]) -> str:
    data = about["data"]
    rows = [
        ["method", f"{about['method']}, seed {about.get('seed')}"],
        ["images", f"{data['train']:,} training, {data['validation']:,} validation, {data['test']:,} test"],
        ["device", _plain(about["device"])],
        ["oncequant", f"{about.get('version')}, commit {about.get('commit')}; torch {about.get('torch')}"],
    ]
    return f"## How it was made\n\n{_table(['', ''], rows)}"


def _deployed(export: Export) -> float:
    """Top-1 of the files as they are meant to be run."""
    return export.found.get("top1_deployed", export.found["top1_package"])


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(titles), ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_{}\[\]<>|#&~])", r"\\\1", " ".join(text.split()))
