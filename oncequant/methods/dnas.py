"""Mixed precision by differentiable architecture search (DNAS). Wu et al., 2018. https://arxiv.org/abs/1812.00090

Idea. Every block of a residual network chooses its pair of bit-widths, no bits at all among them. A stochastic
supernet holds all candidates; a block runs the sum of its candidates weighted by a random mask, whose distribution is
learned together with the weights, by gradients, from a loss that knows what the network costs. Architectures drawn from
the learned distribution are then trained from scratch; of these come the most accurate and the most efficient one.

Symbols.  theta: arch_logits   m: mask   T: temperature   g: Gumbel noise   C: cost_factor   k: candidate pair

    m_k = softmax_k((theta_k + g_k) / T)                                                 Gumbel-softmax
    v   = sum_k m_k e_k(v_i)                                                             mixture of candidate layers
    L   = CrossEntropy x C(Cost),   C = beta (log Cost)^gamma,   Cost = sum over layers of sum_k m_k cost_k

The equations are numbered in no public version that we know; differences from the paper are numbered in docs/dnas.md.

Run. `oncequant run dnas`, recipes/dnas_*.      Results. results/README.md
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from oncequant import distributed
from oncequant.agreed import agreed
from oncequant.arch import FLOAT_PAIR, SKIP, Arch
from oncequant.cost import Cost, expected_cost, find_cost
from oncequant.data import Data, train_batches
from oncequant.elastic import Pass
from oncequant.family import NetworkConfig, check_pairs
from oncequant.files import FileError, PathText
from oncequant.from_scratch import Job, import_weights, quantizer_penalty, start_alone, train_alone, train_side_by_side
from oncequant.limits import check_ranges
from oncequant.loss import Loss
from oncequant.measure import Judge
from oncequant.models import build_network, families_with, space_of
from oncequant.network import Network
from oncequant.records import Distribution, Member, Sample, read_records, write_records
from oncequant.run_folder import Run
from oncequant.schedule import Schedule
from oncequant.search import BudgetOptions
from oncequant.search.budget import check_each
from oncequant.search.family import budget_name, float_pick, hand_out
from oncequant.search.finished import best_within, most_accurate_and_efficient, picks_of, trained_samples
from oncequant.search.measurements import all_costs
from oncequant.space import SearchSpace
from oncequant.stages import Stage, run_stages
from oncequant.supernet_file import load_space, load_supernet
from oncequant.train import StepFunction, TrainingOptions, check_shares, fit

PRECISIONS = {  # candidates of the paper by the cost that it saves: 100 x weight bits + input bits
    "weight_bytes": (SKIP, 132, 232, 332, 432, 832, FLOAT_PAIR),
    "bitops": (104, 204, 303, 404, 808, FLOAT_PAIR),
}

families = families_with("precisions")


def preset(pixels: int) -> str:
    """Twenty layers, for images of up to 32 px."""
    return "resnet20"


@dataclass(frozen=True)
class Config(TrainingOptions):
    """Options of DNAS training."""

    cost: str = "weight_bytes"
    """What the search saves: weight_bytes, bitops, or what a table of --costs measures."""
    precisions: tuple[int, ...] | None = None
    """Candidates, each 100 x weight bits + input bits, 32 = float, or 0: the block becomes its shortcut. Default: the
    paper's, 0 132 232 332 432 832 3232; for other costs 104 204 303 404 808, for bitops 3232 too. One: no choice."""
    per_layer: bool = False
    """Every layer chooses its pair, else every block."""
    weight_quantizer: Literal["dorefa", "lsq"] = "dorefa"
    """Of weights: DoReFa, as the paper, or learned step sizes."""
    act_quantizer: Literal["pact", "lsq"] = "pact"
    """Of inputs: PACT, as the paper, or learned step sizes."""
    projections: bool | None = None
    """Shortcuts between different shapes are 1x1 convolutions (B); default: not for CIFAR's networks (A)."""
    gamma: float = 0.9
    """Weight of the cost in the loss: larger finds cheaper networks; 0 switches it off."""
    cross_entropy: bool = True
    """Off: the search sees the cost alone."""
    temperature: tuple[float, float] = (5.0, 0.5)
    """Of the masks, at the start and at the end of the search; exponential between."""
    warmup_share: float = 0.1
    """Part of the search in which the distribution stays uniform and only weights are trained."""
    arch_share: float = 0.2
    """Part of the training images, and of the steps, that train the distribution, at most 0.5; the others train the
    weights."""
    arch_travel: float = 8.0
    """Learning rate of the logits times their steps: how far one can go in the whole search."""
    samples: int = 6
    """Architectures drawn in the second half of the search and trained from scratch, the most probable one last."""
    pact_decay: float = 1e-4
    """L2 penalty on PACT's clip levels."""
    tolerance: float = 0.005
    """What the most efficient network may lose against the float one, in accuracy from 0 to 1."""
    init: PathText | None = None
    """File (.pth, .safetensors) with the weights of a standard residual network of the same shapes, or folder of
    another run of DNAS, whose classes may differ: every network starts from these weights."""
    jobs: int | None = None
    """Architectures trained side by side, on a share of the cores or on a GPU each; default as many as there are."""

    def __post_init__(self):
        """Refuse impossible options before any training."""
        super().__post_init__()
        check_ranges(self, samples=(1, 1000), arch_share=(1e-4, 0.5), warmup_share=(0, 0.99), gamma=(0, 100))
        check_ranges(self, temperature=(1e-6, 1e6), arch_travel=(1e-6, 10_000), pact_decay=(0, 10), tolerance=(0, 1))
        check_ranges(self, jobs=(1, 1024))
        if len(self.temperature) != 2:
            raise ValueError(f"temperature {self.temperature}: use two numbers, at the start and at the end")
        if self.gamma == 0 and not self.cross_entropy:
            raise ValueError("gamma 0.0: use more than 0 without cross entropy")
        if self.precisions is not None:
            check_pairs(self.precisions, can_skip=not self.per_layer)

    def supernet_model(self, model: Any) -> NetworkConfig:
        """`model`, a float network, with the candidates of the search."""
        projections = model.projections if self.projections is None else self.projections
        per_layer = self.per_layer or not model.can_skip
        default = PRECISIONS.get(self.cost, PRECISIONS["bitops"][:-1])  # tables need not have layers in float
        return replace(
            model,
            precisions=self.precisions or tuple(p for p in default if p != SKIP or not per_layer),
            per_layer=per_layer,
            weight_quantizer=self.weight_quantizer,
            act_quantizer=self.act_quantizer,
            projections=projections,
        )

    def schedule(self, stage: str, data: Data) -> Schedule:
        """Steps and learning rate of a stage: networks that are trained from scratch all train as long."""
        schedule = super().schedule("search" if stage == "search" else "float", data)
        if stage == "search":
            steps = schedule.steps * self.arch_share * (1 - self.warmup_share)
            schedule = replace(schedule, arch_lr=self.arch_travel / max(1, steps))
        return schedule

    def parts(self, images: int) -> tuple[int, ...]:
        """In the search one part of the training images trains the distribution, the rest the weights."""
        archs = max(1, round(self.arch_share * images))
        return images, images - archs, archs

    def check_files(self) -> None:
        """Raise ValueError if networks that this trains cannot be written to files."""
        if any(value % 100 == 1 for value in self.precisions or ()):
            raise ValueError("precisions: files hold inputs of 2 bits and more; 1 can only be trained")


def stages(cfg: Config) -> tuple[str, ...]:
    """Names of the stages in training order; each sample that is drawn is one more (`sample_stage`)."""
    return ("float", "search")


def sample_stage(i: int) -> str:
    """Name of the stage that trains sample i; its folder holds everything of it."""
    return f"samples/{i}/network"


# -- the stochastic supernet


class StochasticSupernet(nn.Module):
    """A network and the logits theta of the pairs of each of its free choices, (choices, candidates)."""

    def __init__(self, net: Network):
        super().__init__()
        self.net = net
        self.arch_logits = nn.Parameter(torch.zeros(len(net.space.free), int(max(net.space.cardinalities, default=1))))

    def masks(self, temperature: float, rng: np.random.Generator) -> dict[str, Tensor]:
        """Gumbel-softmax: by choice, shares of its candidates, (K,), with gradients to the logits."""
        uniform = torch.from_numpy(rng.random(tuple(self.arch_logits.shape))).clamp(1e-9, 1 - 1e-9)
        gumbel = -(-uniform.log()).log()
        logits = (self.arch_logits + gumbel.to(self.arch_logits)) / temperature
        return dict(zip(self.net.space.free, logits.softmax(1)))

    def cost(self, masks: Mapping[str, Tensor], cost: str | Cost) -> Tensor:
        """Expected cost of architectures drawn by `masks`, 0-dim, with gradients to them."""
        nodes = self.net.space.plan(self.net.space.largest()).nodes
        shares = {node.name: masks[node.choice] for node in nodes if node.choice and node.choice in masks}
        return torch.as_tensor(expected_cost(find_cost(cost), self.net.candidates, shares))  # a number without choices


def search_step(
    supernet: StochasticSupernet, cfg: Config, data: Data, schedule: Schedule, cost: Cost, error: Loss
) -> StepFunction:
    """Alternating steps: of the weights, with the distribution as it is; every fifth or so, of the distribution alone.

    The images that `fit` passes train the weights, those of `data` the distribution, uniform until the warm-up is over.
    """
    weights = [p for p in supernet.net.parameters() if p.requires_grad]
    first, shard = round(cfg.warmup_share * schedule.steps), (distributed.rank(), distributed.world_size())
    arch_batches: Iterator[tuple[Tensor, Tensor]] | None = None
    with torch.no_grad():
        uniform = {name: row.softmax(0) for name, row in zip(supernet.net.space.free, supernet.arch_logits * 0)}
        factor = cost_factor(supernet.cost(uniform, cost), cfg.gamma)

    def is_arch_step(number: int) -> bool:
        due = math.floor((number + 1) * cfg.arch_share) > math.floor(number * cfg.arch_share)
        return bool(supernet.net.space.free) and number >= first and due

    def step(images: Tensor, labels: Tensor, rng: np.random.Generator, done: float) -> Tensor:
        nonlocal arch_batches
        number = round(done * schedule.steps)
        masks = supernet.masks(temperature_at(cfg, done), rng)
        if is_arch_step(number):
            if arch_batches is None:
                past = sum(map(is_arch_step, range(number)))
                arch_batches = train_batches(data, schedule.batch_size, seed=cfg.seed + 1, start_step=past, shard=shard)
            images, labels = next(arch_batches)
        else:
            masks = {name: mask.detach() for name, mask in masks.items()}
        if not cfg.cross_entropy and not is_arch_step(number):
            return torch.zeros(())
        loss = factor(supernet.cost(masks, cost))
        if cfg.cross_entropy:
            how = Pass(compute=getattr(torch, cfg.compute), mixture=masks)
            logits = supernet.net(images, supernet.net.space.largest(), how)  # (N, classes)
            loss = error(logits, labels) * loss
        if is_arch_step(number):
            loss.backward(inputs=[supernet.arch_logits])
        else:
            (loss + quantizer_penalty(supernet.net, cfg.pact_decay)).backward(inputs=weights)
        return loss.detach()

    return step


def cost_factor(start: Tensor, gamma: float) -> Callable[[Tensor], Tensor]:
    """C(Cost) = beta (log Cost)^gamma, with beta such that it is 1 at the cost of the uniform distribution."""
    beta = math.log(float(start)) ** -gamma
    return lambda cost: beta * cost.log() ** gamma


def temperature_at(cfg: Config, done: float) -> float:
    """T when a part `done` of the search is done."""
    return cfg.temperature[0] * (cfg.temperature[1] / cfg.temperature[0]) ** done


# -- training


def searched_spaces(cfg: Config, model: NetworkConfig) -> list[SearchSpace]:
    """The space from which architectures are drawn."""
    return [space_of(cfg.supernet_model(model))]


def train(cfg: Config, run: Run) -> None:
    """Train every stage that has no checkpoint yet: the float network, the stochastic supernet, the samples."""
    cfg = agreed("dnas", cfg, run)
    config: Any = cfg.supernet_model(run.model)
    parts = cfg.parts(len(run.data.train))
    if not distributed.from_main((run.folder / "search.safetensors").exists):
        for images in parts:  # they train weights and distribution, and small ones are one batch each
            check_shares(cfg.batch(len(run.data.train)), images)
    floats = replace(config, precisions=(FLOAT_PAIR,), per_layer=not config.can_skip)
    if not (baseline := job(cfg, floats, space_of(floats), run, "float")).is_done():
        train_alone(baseline, run.data)
    start = partial(start_alone, data=run.data, seed=cfg.seed, init=cfg.init, folder=run.folder)
    search = Stage("search", config, space_of(config), start, partial(train_search, cfg=cfg, run=run))
    run_stages([search], run, cfg.seed)
    train_samples(cfg, config, search.space, run)


def train_search(net: Network, cfg: Config, run: Run) -> None:
    """Train weights and distribution; `distribution.jsonl` keeps how that sharpened."""
    data, space = run.data, net.space
    order = torch.from_numpy(np.random.default_rng(cfg.seed).permutation(len(data.train)))
    count = cfg.parts(len(data.train))[-1]
    arch_data, weight_data = (replace(data, train=data.train.subset(i)) for i in (order[:count], order[count:]))
    supernet = StochasticSupernet(net).to(data.device)
    schedule, judge = cfg.schedule("search", data), Judge(data, cfg.calibration(data)).while_training()
    trained = search_step(supernet, cfg, arch_data, schedule, cost := find_cost(cfg.cost, run.costs), cfg.loss(data))
    path, every = run.folder / "distribution.jsonl", max(1, schedule.steps // 40)

    def note(number: int) -> None:
        probabilities = dict(zip(space.free, supernet.arch_logits.detach().softmax(1).tolist()))
        earlier = [row for row in read_records(path, Distribution) if row.step < number]  # not what a kill undid
        write_records(path, [*earlier, Distribution(number, schedule.steps, probabilities)])

    def step(images: Tensor, labels: Tensor, rng: np.random.Generator, done: float) -> Tensor:
        if distributed.is_main() and (number := round(done * schedule.steps)) % every == 0:
            note(number)
        return trained(images, labels, rng, done)

    def evaluate() -> dict[str, float]:
        """Of the distribution: the cost expected of it, and its most probable architecture with the shared weights."""
        probabilities = supernet.arch_logits.detach().softmax(1)
        expected = float(supernet.cost(dict(zip(space.free, probabilities)), cost))
        likely = most_probable(space, probabilities.cpu().numpy())
        return {"top1_likely": judge.validation(supernet.net, likely).top1, f"expected_{cfg.cost}": expected}

    fit(
        supernet,
        step,
        weight_data,
        schedule,
        stage="search",
        run_dir=run.folder,
        seed=cfg.seed,
        evaluate=evaluate,
        checkpoint_seconds=cfg.checkpoint_seconds,
    )
    if distributed.is_main():
        note(schedule.steps)


def most_probable(space: SearchSpace, probabilities: np.ndarray) -> Arch:
    """The architecture of every choice's likeliest candidate; `probabilities` (choices, candidates)."""
    return space.decode(probabilities.argmax(1)) if len(space.free) else space.largest()


def sampled_archs(cfg: Config, space: SearchSpace, path: Path) -> list[Arch]:
    """Different architectures from the distributions in `distribution.jsonl`, evenly over the second half of the
    search, and last the most probable one of its end; fewer than `samples` where the distribution is that sharp."""
    rows = [row for row in read_records(path, Distribution) if 2 * row.step >= row.steps]
    if not rows or set(rows[-1].probabilities) != set(space.free):
        raise FileError(f"{path} does not belong to this search: use another run folder")
    tables = [np.array([row.probabilities[name] for name in space.free]) for row in rows]
    last = most_probable(space, tables[-1])
    rng = np.random.default_rng([cfg.seed, 1])
    found: dict[Arch, None] = {}  # for its order
    for _ in range(20):
        for table in (tables[i] for i in np.linspace(0, len(tables) - 1, max(1, cfg.samples - 1)).round().astype(int)):
            codes = [rng.choice(len(row), p=row / row.sum()) for row in table]
            arch = space.decode(np.array(codes)) if codes else last
            if arch != last and len(found) < cfg.samples - 1:
                found[arch] = None
    return [*found, last]


def train_samples(cfg: Config, config: NetworkConfig, space: SearchSpace, run: Run) -> None:
    """Train the sampled architectures from scratch, side by side; `samples.json` says what became of them."""
    archs = distributed.from_main(lambda: sampled_archs(cfg, space, run.folder / "distribution.jsonl"))
    jobs = [job(cfg, config, space.restrict(arch), run, sample_stage(i)) for i, arch in enumerate(archs)]
    train_side_by_side(jobs, run.data, cfg.jobs)
    judge, costs = Judge(run.data, cfg.calibration(run.data)), run.costs

    def result(number: int) -> Sample:
        stage, arch = sample_stage(number), archs[number]
        net, brief = load_supernet(run.folder, stage, run.data.device), space.brief(arch)
        found = judge.validation(net, net.space.largest())
        return Sample(stage, brief, found.top1, all_costs(space, arch, costs), found.balanced)

    samples = distributed.shared_map(result, range(len(archs)))
    distributed.from_main(lambda: write_records(run.folder / "samples.json", samples))


def job(cfg: Config, config: NetworkConfig, space: SearchSpace, run: Run, stage: str) -> Job:
    """The training of one network, that of the one-point `space`, from scratch."""
    return Job(config, space, run.folder, stage, cfg.schedule(stage, run.data), cfg, cfg.init, cfg.pact_decay)


# -- what is handed out


SearchOptions = BudgetOptions  # nothing is measured after training: the samples are all that there is
EVALUATIONS = 0


def check(cfg: Config, options: SearchOptions, model: NetworkConfig) -> None:
    """Raise BudgetError if a budget is below the cheapest network, FileError if `init` does not fit the network."""
    check_each(space_of(cfg.supernet_model(model)), options.budgets)
    if cfg.init:
        import_weights(build_network(cfg.supernet_model(model)), cfg.init)


def measured(cfg: Config, options: SearchOptions) -> tuple[int, int]:
    """The samples, once each after their training, and what is handed out."""
    return cfg.samples, 2 if options.budgets else 3


def choose(cfg: Config, options: SearchOptions, run: Run) -> list[Member]:
    """Choose among the trained samples: the most accurate within budgets; without, MA and ME (`finished`).

    The members, with their test accuracies, are added to `family.json` and returned. Raises BudgetError if no sample
    is within the budgets.
    """
    cfg = agreed("dnas", cfg, run)
    judge, space = Judge(run.data, cfg.calibration(run.data)), load_space(run.folder, "search")[1]
    metric, network = options.metric, partial(load_supernet, run.folder, device=run.data.device)
    baseline = float_pick("float", network("float"), judge, run.folder, metric)
    samples = trained_samples(run.folder, space, metric)
    if options.budgets:
        picked = {budget_name(options.budgets): best_within(samples, options.budgets, space, metric)}
    else:
        picked = most_accurate_and_efficient(samples, cfg.cost, baseline.accuracy, cfg.tolerance, metric)
    picks = [baseline, *picks_of(picked, space, metric)]
    return hand_out(picks, network, judge, run.folder, set() if options.budgets else {"MA", "ME"})
