"""Training networks of one architecture each from scratch, several side by side in processes of their own."""

import os
import pickle
import signal
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing
from torch import Tensor

from oncequant import distributed
from oncequant.cpu import cores
from oncequant.data import Data, train_batches
from oncequant.elastic import Pass
from oncequant.family import NetworkConfig
from oncequant.files import FileError, user_path
from oncequant.initial import start_from as take_from
from oncequant.measure import Judge, initialise_quantizers
from oncequant.models.import_resnet import import_standard, read_standard
from oncequant.models.own_weights import is_trained, start_from
from oncequant.network import Network, elastic_layers
from oncequant.progress import console, track
from oncequant.run_folder import Run
from oncequant.schedule import Schedule
from oncequant.space import SearchSpace
from oncequant.stages import Stage, run_stages
from oncequant.supernet_file import load_space
from oncequant.train import TrainingError, TrainingOptions, fit


@dataclass(frozen=True)
class Job:
    """One network to train; it becomes `<run_dir>/<stage>.safetensors`. No other job may use that folder meanwhile."""

    config: NetworkConfig
    space: SearchSpace
    """One point: the architecture."""
    run_dir: Path
    stage: str
    schedule: Schedule
    options: TrainingOptions
    init: str | None = None
    """File with the weights of a standard network to start from."""
    pact_decay: float = 0.0
    """L2 penalty on PACT's clip levels."""

    def is_done(self) -> bool:
        """Whether the network is there; all processes ask together. Raises FileError if another one is there."""

        def look() -> bool:
            path = self.run_dir / f"{self.stage}.safetensors"
            if path.exists() and load_space(self.run_dir, self.stage)[1].choices != self.space.choices:
                raise FileError(f"{path} is a network of another architecture: delete it to train this one")
            return path.exists()

        return distributed.from_main(look)


def train_alone(job: Job, data: Data, neighbours: int = 1) -> float:
    """Train the network of a job by cross entropy; returns its top-1 on validation images. `neighbours`: see `fit`."""
    options, arch, error = job.options, job.space.largest(), job.options.loss(data)
    judge, how = Judge(data, options.calibration(data)).while_training(), Pass(compute=getattr(torch, options.compute))
    place, top1 = job.run_dir / job.stage, [0.0]

    def train(net: Network) -> None:
        if is_trained(net.config):
            top1[0] = judge.validation(net, arch).top1
            return

        def step(images: Tensor, labels: Tensor, rng: np.random.Generator, done: float) -> Tensor:
            logits = net(images, arch, how)  # (N, classes)
            loss = error(logits, labels)
            (loss + quantizer_penalty(net, job.pact_decay)).backward()
            return loss.detach()

        def evaluate() -> dict[str, float]:
            top1[0] = judge.validation(net, arch).top1
            return {"top1": top1[0]}

        place.parent.mkdir(parents=True, exist_ok=True)
        fit(
            net,
            step,
            data,
            job.schedule,
            stage=place.name,
            run_dir=place.parent,
            seed=options.seed,
            evaluate=evaluate,
            checkpoint_seconds=options.checkpoint_seconds,
            neighbours=neighbours,
        )

    start = partial(start_alone, data=data, seed=options.seed, init=job.init, folder=job.run_dir)
    stage = Stage(job.stage, job.config, job.space, start, train)
    run_stages([stage], Run(job.run_dir, job.config, data), options.seed)
    return top1[0]


def train_side_by_side(jobs: Sequence[Job], data: Data, at_once: int | None = None) -> None:
    """Train the networks that are not there yet, so many at once, each on a share of the cores or on a GPU; by default
    as many as there are. Processes that already share the work train one network after the other together."""
    todo = [job for job in jobs if not job.is_done()]
    at_once = side_by_side(at_once, len(todo), data.device)
    if at_once <= 1:
        for job in todo:
            train_alone(job, data)
        return
    context = torch.multiprocessing.get_context("spawn")
    places = context.SimpleQueue()
    for place in range(at_once):
        places.put(place)
    pool = ProcessPoolExecutor(at_once, context, _begin_worker, (at_once, places, data.device.type, os.getpid()))
    with tempfile.TemporaryDirectory() as folder:
        # By a file: shared memory is short in containers, and with every job the images would be kept once more.
        path = Path(folder) / "data.pickle"
        path.write_bytes(pickle.dumps(data.on(torch.device("cpu"))))
        try:
            started = [pool.submit(_train_in_worker, job, path, data.device.type, at_once) for job in todo]
            with track("train samples", len(started)) as bar:
                for done, one in enumerate(as_completed(started), start=1):
                    bar(done, {"top1": one.result()})
        except BrokenProcessPool as error:
            raise TrainingError(
                "a process that trained a sample was ended, for want of memory perhaps (jobs 1 needs least); "
                "the same command goes on"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)  # after an error the networks that wait are not begun


def side_by_side(asked: int | None, count: int, device: torch.device) -> int:
    """How many of `count` networks are trained at once where so many are asked for, or None."""
    if distributed.world_size() > 1:
        return 1
    return min(asked or (torch.cuda.device_count() if device.type == "cuda" else cores()), count)


def start_alone(net: Network, data: Data, seed: int, init: str | None, folder: Path) -> None:
    """Keep the random weights, or take those of the file or run folder `init`, or those that the run `folder` has for
    a network of the user's own; step sizes and clip levels from what they quantize.

    Raises FileError if they do not fit.
    """
    start_from(net, folder)
    if init:
        taken = import_weights(net, init, data.classes)
        if taken and not (folder / "float.safetensors").exists():  # said once, by the first stage
            console.print(taken, soft_wrap=True)
    images, _ = next(train_batches(data, 256, seed=seed, crop="none"))
    initialise_quantizers(net, images)


def import_weights(net: Network, place: str, classes: Sequence[str] = ()) -> str:
    """Weights of a standard network from a file, all of them, or what fits of another run's float network, see
    `initial.start_from`; returns a line on that. Raises FileError naming the place if they are not this network's."""
    if user_path(place).is_dir():
        return take_from(net, place, classes)
    try:
        import_standard(net, read_standard(Path(place)))
    except ValueError as error:
        raise FileError(f"{place}: {error}") from error
    return ""


def quantizer_penalty(net: Network, decay: float) -> Tensor | float:
    """What quantizers add to the loss: PACT's L2 penalty."""
    found = [q.penalty() for _, layer in elastic_layers(net) if (q := layer.act_quantizer) is not None]
    return decay * sum(term for term in found if term is not None)


def _begin_worker(at_once: int, places: SimpleQueue, device: str, parent: int) -> None:
    """A worker has its share of the cores, a GPU of its own as far as there are so many, and no progress bar; it ends
    with its parent, and at once by Ctrl-C."""
    torch.set_num_threads(max(1, cores() // at_once))
    if device == "cuda":
        torch.cuda.set_device(places.get() % torch.cuda.device_count())
    console.quiet = True
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    distributed.end_with(parent)


def _train_in_worker(job: Job, path: Path, device: str, at_once: int) -> float:
    return train_alone(job, _data_of_worker(path, device), at_once)


@cache
def _data_of_worker(path: Path, device: str) -> Data:
    """The images, once in a worker; the main process wrote the file."""
    data = pickle.loads(path.read_bytes())
    return data.on(torch.device("cuda", torch.cuda.current_device())) if device == "cuda" else data
