"""Several processes that train together equal one."""

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest
import torch
from processes import pair
from small_training import CONFIG, TINY, digits

from oncequant import distributed, sandwich
from oncequant.data import train_batches
from oncequant.methods import oqat, qfa
from oncequant.quantizers import batchquant
from oncequant.records import Measurement, read_records
from oncequant.run_folder import Run
from oncequant.sandwich import sandwich_archs
from oncequant.tensor_files import read_tensors
from oncequant.train import check_shares


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
    with pytest.raises(RuntimeError, match="process 1 of 3 did not join"):
        distributed.own_part(store, 0, 3, patience=0.2)


@pytest.fixture(scope="module")
def in_processes():
    with pair() as call:
        yield call


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


def test_parts(in_processes):
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


def train_tiny(rank, folder, options):
    model = replace(TINY, dropout=0.0)
    config = replace(CONFIG, optimizer="sgd", batch_size=16, min_steps=3, epochs=1, float_epochs=1, **options)
    oqat.train(config, Run(folder, model, digits(train=48)))


@pytest.mark.parametrize("synchronised", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_two_processes_equal_one_with_synchronised_batch_norm(synchronised, in_processes, tmp_path):
    """Float and quantized; weights, norms and step sizes. Without synchronisation they differ, slightly."""
    options = dict(sync_batch_norm=synchronised, bit_schedule=(4,), lr=0.05, quantized_lr=0.01)
    train_tiny(0, tmp_path / "one", options)
    in_processes(train_tiny, tmp_path / "two", options)
    assert {p.name for p in (tmp_path / "two").iterdir()} == {p.name for p in (tmp_path / "one").iterdir()}
    for stage, tolerance in (("float", 1e-5), ("4bit", 5e-3)):  # a rounded value may flip on a tie
        one, two = (read_tensors(tmp_path / which / f"{stage}.safetensors")[0] for which in ("one", "two"))
        difference = max((one[name] - two[name]).abs().max().item() for name in one)
        assert (difference <= tolerance) == synchronised, (stage, difference)


def train_mixed(rank, folder):
    model = replace(TINY, dropout=0.0)
    options = dict(optimizer="sgd", batch_size=16, min_steps=3, epochs=1, float_epochs=1, calibration_images=16)
    cfg = qfa.Config(**options, sync_batch_norm=True, mixed_subnets=1, lr=0.05, quantized_lr=0.01)
    data = digits(train=48)
    qfa.train(cfg, Run(folder, model, data))
    qfa.choose(
        cfg, qfa.SearchOptions(evaluations=32, population=20, generations=4, front_members=2), Run(folder, model, data)
    )


def test_two_processes_equal_one_with_mixed_precision(in_processes, tmp_path):
    """Ranges of BatchQuant are those of the whole batch; the search is shared and measures the same subnets."""
    train_mixed(0, tmp_path / "one")
    in_processes(train_mixed, tmp_path / "two")
    for stage, tolerance in (("float", 1e-5), ("mixed", 5e-3)):
        one, two = (read_tensors(tmp_path / which / f"{stage}.safetensors")[0] for which in ("one", "two"))
        difference = max((one[name] - two[name]).nan_to_num().abs().max().item() for name in one)
        assert difference <= tolerance, (stage, difference)
    archs = [[m.arch for m in read_records(tmp_path / w / "measurements.jsonl", Measurement)] for w in ("one", "two")]
    assert archs[0][:32] == archs[1][:32]


def ranges_of_last_stage(folder, shared):
    """Ranges that this process used in training with mixed precision, all layers and steps."""
    original, range_of, seen = qfa.train_supernet, batchquant.batch_range, []

    def record(supernet, step, cfg, data, run_dir, stage, *rest):
        def noted(x, *rest):
            found = range_of(x, *rest)
            seen.append((len(x), found))
            return found

        batchquant.batch_range = noted if stage == "mixed" else range_of
        original(supernet, step, cfg, data, run_dir, stage, *rest)

    qfa.train_supernet = record
    options = dict(batch_size=16, min_steps=2, epochs=1, float_epochs=1, calibration_images=16, mixed_subnets=0)
    qfa.train(qfa.Config(**options, sync_ranges=shared), Run(folder, TINY, digits(train=48)))
    qfa.train_supernet, batchquant.batch_range = original, range_of
    return [found for images, found in seen if images == 8]  # half of the batch; measuring has other batches


def train_with_ranges(rank, folder):
    for shared in (True, False):
        of_both = [None, None]
        torch.distributed.all_gather_object(of_both, ranges_of_last_stage(folder / str(shared), shared))
        assert len(of_both[0]) == len(of_both[1]) > 20
        assert all(map(torch.equal, *of_both)) == shared


def test_processes_share_the_ranges_of_a_batch(in_processes, tmp_path):
    in_processes(train_with_ranges, tmp_path)


def train_both_ways(rank, folder):
    drawn = []

    def record(*how):
        archs = sandwich_archs(*how)
        drawn.append(archs[-1])
        return archs

    sandwich.sandwich_archs = record
    for independent in (False, True):
        drawn.clear()
        train_tiny(
            rank, folder / str(independent), dict(independent_archs=independent, bit_schedule=(4,), float_sandwich=True)
        )
        of_both = [None, None]
        torch.distributed.all_gather_object(of_both, list(drawn))
        assert len(of_both[0]) == len(of_both[1]) >= 6
        assert (of_both[0] == of_both[1]) != independent
    sandwich.sandwich_archs = sandwich_archs


def test_architectures_are_shared_or_independent(in_processes, tmp_path):
    in_processes(train_both_ways, tmp_path)


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("oncequant.distributed.world_size", lambda: 3)
    with pytest.raises(ValueError, match="a batch of 16 images is not a multiple of the 3 processes"):
        check_shares(16, 48)
    check_shares(15, 48)
    check_shares(64, 48)  # a batch has no more images than there are
