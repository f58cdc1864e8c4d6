import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from PIL import Image
from test_train import CONFIG, TINY, digits

from oncequant import distributed, sandwich
from oncequant.data import train_batches
from oncequant.files import read_tensors
from oncequant.methods import oqat, qfa
from oncequant.quantizers.batchquant import BatchQuant
from oncequant.sandwich import sandwich_archs
from oncequant.search import SearchConfig
from oncequant.search.measurements import read_measurements

TINY_OPTIONS = (
    "--data digits --resolutions 8 --depths 1 --kernel-sizes 3 --expand-ratios 2 3 --width 0.5 --max-train 120 "
    "--batch-size 16 --epochs 1 --float-epochs 1 --min-steps 12 --bit-schedule 4 --calibration-images 64"
).split()


def in_processes(function, *args, processes=2):
    """Run function(rank, *args) in processes that have joined each other."""
    mp.spawn(_joined, (processes, distributed_port(), function, args), processes)


def _joined(rank, processes, port, function, args):
    torch.set_num_threads(1)
    os.environ |= dict(
        RANK=str(rank), WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank)
    )
    distributed.join(torch.device("cpu"))
    function(rank, *args)
    distributed.leave()
    # one that is left may need Python when there is none any more, which aborts the process
    threads = [Path(f"/proc/self/task/{thread}/comm").read_text() for thread in os.listdir("/proc/self/task")]
    assert not [name for name in threads if "gloo" in name]


def distributed_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# -- the parts


def test_processes_started_again_find_nothing_of_their_predecessors():
    """Three starts on one store, of which the second ends with the call of one process."""
    store = torch.distributed.HashStore()
    store.set_timeout(timedelta(seconds=20))

    def start():
        with ThreadPoolExecutor(3) as pool:
            parts = list(pool.map(lambda number: distributed.own_part(store, number, 3), range(3), timeout=60))
        assert not parts[0].check(["address"])
        parts[1].set("address", "here")
        assert all(part.get("address") == b"here" for part in parts)

    start()
    store.set("call/2", "a process that ended before it heard the answer")
    start()
    start()
    store.set_timeout(timedelta(seconds=0.2))
    with pytest.raises(RuntimeError, match="process 1 of 3 did not join"):
        distributed.own_part(store, 0, 3)


def check_parts(rank):
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (rank, 2, rank == 0)
    assert distributed.shared_map(lambda item: (item, distributed.rank()), [5, 6, 7]) == [(5, 0), (6, 1), (7, 0)]
    assert distributed.shared_map(str, []) == []
    assert distributed.from_main(lambda: f"said by {distributed.rank()}") == "said by 0"

    def fails():
        raise FileNotFoundError("no such folder")

    with pytest.raises(FileNotFoundError, match="no such folder"):
        distributed.from_main(fails)

    net = torch.nn.ModuleDict({name: torch.nn.Linear(3, 2, bias=False) for name in "abc"})
    with torch.no_grad():
        for layer in net.values():
            layer.weight.fill_(rank + 1.0)
    distributed.broadcast_state(net)
    assert all((layer.weight == 1).all() for layer in net.values())
    net["a"].weight.grad = torch.full((2, 3), 1.0 + rank)
    if rank == 1:
        net["b"].weight.grad = torch.full((2, 3), 5.0)
    distributed.average_gradients(net)
    assert (net["a"].weight.grad == 1.5).all() and (net["b"].weight.grad == 2.5).all()
    assert net["c"].weight.grad is None  # nobody used it: no decay, no momentum, as in one process


def test_parts():
    in_processes(check_parts)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere loader workers are no copies of their parent")
def test_forks_wait_for_busy_threads():
    numbers = torch.rand(5000, 5000)
    thread = threading.Thread(target=numbers.sort)  # without the interpreter's lock, for seconds
    thread.start()
    began = time.monotonic()
    distributed.wait_for_threads(0.05)
    assert thread.is_alive() and 0.05 <= time.monotonic() - began < 1
    distributed.wait_for_threads(300)
    thread.join(1)
    assert not thread.is_alive()
    began = time.monotonic()
    distributed.wait_for_threads(300)
    assert time.monotonic() - began < 10


def test_one_process_needs_nothing():
    assert distributed.shared_map(str, [1, 2]) == ["1", "2"] and distributed.from_main(lambda: 3) == 3
    assert (distributed.rank(), distributed.world_size()) == (0, 1)


@pytest.mark.parametrize("crop", ["pad", "resized"])
def test_parts_of_a_batch_make_the_batch(crop):
    data = replace(digits(size=8), flip=True)
    for start in (0, 5):
        whole = train_batches(data, 12, seed=1, start_step=start, crop=crop)
        parts = [train_batches(data, 12, seed=1, start_step=start, crop=crop, shard=(i, 3)) for i in range(3)]
        for _ in range(3):
            images, labels = next(whole)
            together = [next(part) for part in parts]
            assert torch.equal(torch.cat([x for x, _ in together]), images)
            assert torch.equal(torch.cat([y for _, y in together]), labels)


# -- two processes are one


def train_tiny(rank, folder, options):
    model = replace(TINY, dropout=0.0)
    config = replace(CONFIG, optimizer="sgd", batch_size=16, min_steps=3, epochs=1, float_epochs=1, **options)
    oqat.train(config, model, digits(train=48), folder)


@pytest.mark.parametrize("synchronised", [True, False])
def test_two_processes_equal_one_with_synchronised_batch_norm(synchronised, tmp_path):
    """Float and quantized; weights, norms and step sizes. Without synchronisation they differ, slightly."""
    options = dict(sync_batch_norm=synchronised, bit_schedule=(4,), lr=0.05, quantized_lr=0.01)
    train_tiny(0, tmp_path / "one", options)
    in_processes(train_tiny, tmp_path / "two", options)
    assert {p.name for p in (tmp_path / "two").iterdir()} == {p.name for p in (tmp_path / "one").iterdir()}
    for stage, tolerance in (("float", 1e-5), ("4bit", 2e-3)):  # a rounded value may flip on a tie
        one, two = (read_tensors(tmp_path / which / f"{stage}.safetensors")[0] for which in ("one", "two"))
        difference = max((one[name] - two[name]).abs().max().item() for name in one)
        assert (difference <= tolerance) == synchronised, (stage, difference)


def train_mixed(rank, folder):
    model = replace(TINY, dropout=0.0)
    options = dict(optimizer="sgd", batch_size=16, min_steps=3, epochs=1, float_epochs=1, calibration_images=16)
    cfg = qfa.Config(**options, sync_batch_norm=True, mixed_subnets=1, lr=0.05, quantized_lr=0.01)
    data = digits(train=48)
    qfa.train(cfg, model, data, folder)
    qfa.search(cfg, SearchConfig(evaluations=32), data, folder)


def test_two_processes_equal_one_with_mixed_precision(tmp_path):
    """Ranges of BatchQuant are those of the whole batch; the search is shared and measures the same subnets."""
    train_mixed(0, tmp_path / "one")
    in_processes(train_mixed, tmp_path / "two")
    for stage, tolerance in (("float", 1e-5), ("mixed", 5e-3)):
        one, two = (read_tensors(tmp_path / which / f"{stage}.safetensors")[0] for which in ("one", "two"))
        difference = max((one[name] - two[name]).nan_to_num().abs().max().item() for name in one)
        assert difference <= tolerance, (stage, difference)
    archs = [[m.arch for m in read_measurements(tmp_path / w / "measurements.jsonl")] for w in ("one", "two")]
    assert archs[0][:32] == archs[1][:32]


def ranges_of_last_stage(folder, shared):
    """Ranges that this process used in training with mixed precision, all layers and steps."""
    original, seen = qfa.train_supernet, []

    def record(supernet, step, cfg, data, run_dir, stage, *rest):
        quantizers = [module for module in supernet.modules() if isinstance(module, BatchQuant)]
        for module in quantizers:
            module.observed = seen if stage == "mixed" else None
        original(supernet, step, cfg, data, run_dir, stage, *rest)

    qfa.train_supernet = record
    options = dict(batch_size=16, min_steps=2, epochs=1, float_epochs=1, calibration_images=16, mixed_subnets=0)
    qfa.train(qfa.Config(**options, sync_ranges=shared), TINY, digits(train=48), folder)
    qfa.train_supernet = original
    return [found for images, found in seen if images == 8]  # half of the batch; measuring has other batches


def train_with_ranges(rank, folder):
    for shared in (True, False):
        of_both = [None, None]
        torch.distributed.all_gather_object(of_both, ranges_of_last_stage(folder / str(shared), shared))
        assert len(of_both[0]) == len(of_both[1]) > 20
        assert all(map(torch.equal, *of_both)) == shared


def test_processes_share_the_ranges_of_a_batch(tmp_path):
    in_processes(train_with_ranges, tmp_path)


def train_both_ways(rank, folder):
    drawn = []

    def record(space, count, rng):
        archs = sandwich_archs(space, count, rng)
        drawn.append(archs[-1])
        return archs

    sandwich.sandwich_archs = record
    for independent in (False, True):
        drawn.clear()
        train_tiny(rank, folder / str(independent), dict(independent_archs=independent, bit_schedule=(4,)))
        of_both = [None, None]
        torch.distributed.all_gather_object(of_both, list(drawn))
        assert len(of_both[0]) == len(of_both[1]) >= 6
        assert (of_both[0] == of_both[1]) != independent


def test_architectures_are_shared_or_independent(tmp_path):
    in_processes(train_both_ways, tmp_path)


def refuses_odd_batches(rank, folder):
    with pytest.raises(ValueError, match="a batch of 16 images is not a multiple of the 3 processes"):
        train_tiny(rank, folder, {})


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path):
    in_processes(refuses_odd_batches, tmp_path, processes=3)


# -- the command line


def oncequant(*arguments, torchrun=()):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    program = [*torchrun, "-m", "oncequant", "--"] if torchrun else ["-m", "oncequant"]
    command = [sys.executable, *program, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output


def test_devices_shares_training_and_search_and_prints_once(tmp_path):
    output = finish(oncequant("train", *TINY_OPTIONS, "--run", tmp_path / "run", "--devices", 2))
    assert output.count("digits: 10 classes") == 1 and output.count("train 4bit: 12/12") == 1
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        ".lock", "run.json", "commands.jsonl", "metrics.jsonl", "tensorboard", "float.safetensors", "4bit.safetensors"
    }  # fmt: skip
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    finish(oncequant("search", tmp_path / "run", "--evaluations", 9, "--devices", 2))
    finish(oncequant("search", tmp_path / "copy", "--evaluations", 9))
    for name in ("measurements.jsonl", "family.json"):  # the result does not depend on the number of processes
        assert (tmp_path / "run" / name).read_text() == (tmp_path / "copy" / name).read_text()


def test_errors_of_several_processes_are_one_line(tmp_path):
    process = oncequant("train", "--data", tmp_path / "nothing", "--devices", 2)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and errors.count("error:") == 1 and "nothing" in errors


BROKEN_IN_THE_SECOND = """
from oncequant import cli, data, distributed

whole = data._Pixels.__getitem__

def part(self, batch):
    if distributed.rank():
        raise data.DataError("image 7 is broken")
    return whole(self, batch)

data._Pixels.__getitem__ = part
cli.main()
"""


def test_an_error_of_one_process_alone_is_printed_and_ends_all(tmp_path):
    """Its training images are broken; those of the main process are not."""
    for i in range(40):
        folder = tmp_path / "images" / "train" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), 6 * i, np.uint8)).save(folder / f"{i}.png")
    options = ["--data", tmp_path / "images", "--run", tmp_path / "run", "--resident-gib", "0", "--resolutions", "16"]
    (tmp_path / "broken.py").write_text(BROKEN_IN_THE_SECOND)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"}
    environment["MASTER_PORT"] = str(distributed_port())
    command = [sys.executable, str(tmp_path / "broken.py"), "train", *map(str, options)]
    places = [{**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    pipes = dict(stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    processes = [subprocess.Popen(command, env=place, **pipes) for place in places]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert all(process.returncode for process in processes)
    assert "error: process 1: image 7 is broken" in errors[1]


def workers_of(process):
    listed = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    return [int(pid) for pid in listed]


def family_of(pid):
    """The process and all that it started, the youngest generation first."""
    listed = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    return [member for child in listed for member in family_of(int(child))] + [pid]


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


def test_a_killed_rank_is_survived_under_torchrun(tmp_path):
    """torchrun starts all ranks again; they go on from the checkpoint, to the weights of an undisturbed run."""
    options = ["train", *TINY_OPTIONS, "--min-steps", "60", "--checkpoint-seconds", "0"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    finish(oncequant(*options, "--run", tmp_path / "calm", torchrun=torchrun))
    process = oncequant(*options, "--run", tmp_path / "killed", torchrun=[*torchrun, "--max-restarts=2"])
    wait_for(tmp_path / "killed" / "float.resume.pt", process)
    os.kill(workers_of(process)[-1], signal.SIGKILL)
    finish(process)
    lines = [json.loads(line) for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in lines if row["stage"] == "4bit"][-1] == 60
    for stage in ("float", "4bit"):
        calm, killed = (read_tensors(tmp_path / run / f"{stage}.safetensors")[0] for run in ("calm", "killed"))
        assert calm.keys() == killed.keys() and all(torch.equal(calm[name], killed[name]) for name in calm)


def test_no_process_outlives_a_killed_launcher(tmp_path):
    process = oncequant("train", *TINY_OPTIONS, "--min-steps", "5000", "--run", tmp_path / "run", "--devices", 2)
    wait_for(tmp_path / "run" / "metrics.jsonl", process)
    workers = workers_of(process)
    assert len(workers) == 2
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("devices", ["0", "-1"])
def test_impossible_numbers_of_processes_are_refused(devices):
    process = oncequant("train", "--devices", devices)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and f"--devices {devices}" in errors


@pytest.mark.parametrize("method, last", [("oqat", "4bit"), ("qfa", "mixed")])
def test_the_imagenet_recipes_run_on_a_few_jpegs(method, last, tmp_path):
    """Two processes, streamed images of different sizes, published options but for the scale."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 30), ("test", 5)):
        for name in ("n01440764", "n01443537"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                height, width = generator.integers(40, 90, 2)
                pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.JPEG")
    small = "--batch-size 8 --float-epochs 1 --epochs 1 --min-steps 3 --calibration-images 16 "
    small += "--width 0.35 --resolutions 32 40 --depths 2 --kernel-sizes 3 5 --validation-fraction 0.2 --resident-gib 0"
    small += " --bit-schedule 4" if method == "oqat" else " --qfa.mixed-subnets 1 --qfa.range-batch 4"
    evaluations = dict(oqat="4", qfa="30")[method]
    environment = dict(DATA=str(tmp_path / "images"), RUN=str(tmp_path / "run"), DEVICES="2", EVALUATIONS=evaluations)
    environment |= dict(POPULATION="8", GENERATIONS="2")
    environment |= {**os.environ, "OPTIONS": small, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"} | environment
    recipe = Path(__file__).parent.parent / "recipes" / f"{method}_imagenet.sh"
    process = subprocess.Popen(["sh", str(recipe)], env=environment)
    try:
        assert process.wait(300) == 0
    except subprocess.TimeoutExpired:
        for pid in family_of(process.pid):
            os.kill(pid, signal.SIGABRT)  # each prints where it stands
            time.sleep(0.5)
        raise
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    published = dict(
        oqat=dict(optimizer="sgd"),
        qfa=dict(
            optimizer="sgd", quantized_lr=6 * 0.0025 * 2, clip_norm=83, weight_decay=5e-6, label_smoothing=0.1,
            learned_offsets=1, sync_ranges=False, bits=[2, 3, 4],
        ),
    )[method]  # fmt: skip
    assert run["method_config"].items() >= published.items() and run["model"]["preset"] == "imagenet"
    searched = json.loads((tmp_path / "run" / "commands.jsonl").read_text().splitlines()[1])["command"]
    assert method == "oqat" or "--front qfa_mflops" in searched and "--front-members 0" in searched
    assert {"float.safetensors", f"{last}.safetensors", "report"} <= {p.name for p in (tmp_path / "run").iterdir()}
    exports = json.loads((tmp_path / "run" / "exports.json").read_text())
    assert exports and all(row["problems"] == [] and row["images"] == 10 for row in exports)
