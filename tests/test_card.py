"""Model cards of exported networks, and the hub: a stand-in on this machine that keeps what it is sent."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import torch
from commands import call, fails

from oncequant import load_package
from oncequant.card import write_card
from oncequant.files import FileError, read_json, write_json
from oncequant.intervals import share_interval

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def run(digits_run, tmp_path_factory):
    return shutil.copytree(digits_run, tmp_path_factory.mktemp("card") / "run")


@pytest.fixture
def name(run):
    return read_json(run / "exports.json")[-1]["name"]


@pytest.fixture
def hub(tmp_path):
    """Files by path, and the environment of a process that takes this for the hub."""
    files: dict[str, bytes] = {}

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def answer(self, content, **headers):
            self.send_response(200)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def do_POST(self):
            body, found = (
                self.rfile.read(int(self.headers["Content-Length"])),
                {"url": f"http://{self.headers['Host']}/me/net"},
            )
            if "/preupload/" in self.path:
                paths = [one["path"] for one in json.loads(body)["files"]]
                plain = {"uploadMode": "regular", "shouldIgnore": False}
                found = {"files": [{"path": path, "oid": None, **plain} for path in paths]}
            if "/commit/" in self.path:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                found = {
                    "commitUrl": f"http://{self.headers['Host']}/me/net/commit/{COMMIT}",
                    "commitOid": COMMIT,
                    "success": True,
                }
            self.answer(json.dumps(found).encode(), Content_Type="application/json")

        def do_GET(self):
            if "/resolve/" in self.path:
                content = files[self.path.rpartition("/")[2]]
                return self.answer(content, ETag=f'"{hash(content):x}"', X_Repo_Commit=COMMIT)
            siblings = [{"rfilename": path} for path in files]
            if "/tree/" in self.path:
                found = [{"type": "file", "path": path, "size": len(files[path]), "oid": path} for path in files]
                return self.answer(json.dumps(found).encode(), Content_Type="application/json")
            found = {"id": "me/net", "sha": COMMIT, "siblings": siblings, "private": False}
            return self.answer(json.dumps(found).encode(), Content_Type="application/json")

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    where = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "hub")}
    yield files, {**os.environ, **where, "HF_TOKEN": "hf_nobody", "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
    server.shutdown()


def test_a_card_says_what_is_known_of_a_network(run, name, monkeypatch):
    call(monkeypatch, "card", run, name)
    folder = run / "exports" / name
    text, about = (folder / "README.md").read_text(), read_json(run / "exports.json")[-1]
    data = read_json(run / "run.json")["data"]
    for fact in ("pipeline_tag: image-classification", f"| {100 * about['top1_deployed']:.2f} |", "trained on digits",
                 f"{data['train']} training, {data['validation']} validation, {data['test']} test",
                 "| `classifier` | 10 x 16 | 8 | 8 |", f"all {data['test']} images"):  # fmt: skip
        assert fact in text, fact
    assert str(run) not in text and "/tmp" not in text  # nothing of this machine's folders
    graph = load_package(folder).graph
    layers = re.findall(r"^\| `(\S+)` \| [\dx ]+ \| (\S+) \| (\S+) \|$", text, re.MULTILINE)
    assert [name for name, *_ in layers] == [node.name for node in graph.nodes if node.weights]
    assert [int(bits) for _, bits, _ in layers] == [node.weights.bits for node in graph.nodes if node.weights]
    config = read_json(folder / "config.json")
    assert config["id2label"]["3"] == graph.classes[3] and config["label2id"][graph.classes[3]] == 3
    assert config["num_channels"] == 1 and config["resolution"] == graph.resolution
    header = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)[1]
    found = json.loads(re.search(r"^model-index: (.*)$", header, re.MULTILINE)[1])
    assert found[0]["results"][0]["metrics"][0]["value"] == round(100 * about["top1_deployed"], 2)


def test_the_hub_reads_the_head_of_a_card(run, name):
    from huggingface_hub import ModelCard

    card = ModelCard.load(write_card(run, name) / "README.md").data
    assert card.library_name == "oncequant" and card.eval_results[0].metric_type == "accuracy"


def test_a_card_goes_when_the_files_are_made_anew(run, name, monkeypatch):
    folder = write_card(run, name)
    call(monkeypatch, "export", run, name)
    assert (folder / "model.json").exists()
    assert not (folder / "README.md").exists() and not (folder / "config.json").exists()


def test_upload_and_back(run, name, hub):
    files, environment = hub
    words = [sys.executable, "-m", "oncequant", "push", str(run), name, "me/net"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("/me/net")
    folder = run / "exports" / name
    assert files == {path.name: path.read_bytes() for path in folder.iterdir()} and "README.md" in files
    package = load_package(folder)
    size = package.graph.resolution
    image = f"torch.arange({size}.0**2).view(1, 1, {size}, {size})"
    code = "import torch; from oncequant import load_package; torch.set_printoptions(precision=8)\n"
    code += f"print(load_package('hf://me/net@main')({image}))"
    back = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    with torch.no_grad():
        expected = package(torch.arange(size**2.0).view(1, 1, size, size))
    values = [float(value) for value in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", back.stdout)]
    assert values == pytest.approx(expected.flatten().tolist(), abs=1e-4), back.stderr
    files["model.safetensors"] = files["model.safetensors"][:-8] + bytes(8)
    again = {**environment, "HF_HOME": environment["HF_HOME"] + "2"}
    refused = subprocess.run([sys.executable, "-c", code], env=again, capture_output=True, text=True)
    assert "was changed or damaged" in refused.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["card", "{run}", "4bit-Q"], "has no exported network '4bit-Q', there are float-max"),
        (["card", "{run}/nowhere", "a"], "exported network 'a', there are none"),
        (["push", "{run}", "{name}", "net"], "net: a repository of the hub is called OWNER/NAME"),
    ],
)
def test_one_line_for_each_mistake(words, message, run, name, monkeypatch, capsys):
    assert message in fails(monkeypatch, capsys, *(word.format(run=run, name=name) for word in words))


def test_untrusted_and_old_files_get_no_card(run, name, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    exports = read_json(copy / "exports.json")
    write_json(copy / "exports.json", [{**one, "problems": ["they differ"]} for one in exports])
    with pytest.raises(FileError, match="cannot be trusted: they differ"):
        write_card(copy, name)
    write_json(copy / "exports.json", [{**one, "arch": {"resolution": 99}} for one in exports])
    with pytest.raises(FileError, match="of an earlier search"):
        write_card(copy, name)


def test_a_hub_that_does_not_answer_is_one_line(run, name, hub):
    _, environment = hub
    environment["HF_ENDPOINT"] = "http://127.0.0.1:9"
    words = [sys.executable, "-m", "oncequant", "push", str(run), name, "me/net"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "error: me/net cannot be uploaded" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("share, images", [(0.5, 100), (0.0, 20), (1.0, 359), (0.838, 10_000)])
def test_intervals_are_those_of_scipy(share, images):
    from scipy.stats import binomtest

    expected = binomtest(round(share * images), images).proportion_ci(0.95, method="wilson")
    assert share_interval(share, images) == pytest.approx((expected.low, expected.high), abs=1e-12)
    with pytest.raises(ValueError, match="at least one image"):
        share_interval(share, 0)
