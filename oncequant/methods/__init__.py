"""One file per paper; each reads top to bottom like the paper's algorithm."""

from collections.abc import Sequence
from typing import Any, Protocol

from oncequant.methods import dnas, oqat, qfa
from oncequant.records import Member
from oncequant.run_folder import Run
from oncequant.search import BudgetOptions
from oncequant.space import SearchSpace
from oncequant.train import TrainingOptions


class Method(Protocol):
    """What a method is to the rest of the program: a module (or another value) with what follows.

    A *stage* is one network to train; it becomes `<stage>.safetensors` of the run folder.
    """

    @property
    def Config(self) -> type[TrainingOptions]:
        """Options of training: a frozen dataclass of TrainingOptions and the method's own; all have defaults. Its
        `__post_init__` raises ValueError for values that cannot work. The command line has an option for each field."""

    @property
    def SearchOptions(self) -> type[BudgetOptions]:
        """Options of choosing, likewise: BudgetOptions, or a frozen dataclass that inherits them."""

    @property
    def EVALUATIONS(self) -> int:
        """Subnets that its search measures where its options leave that open; 0 if it measures none."""

    @property
    def families(self) -> tuple[str, ...]:
        """The families of networks that it trains, keys of `oncequant.models.FAMILIES`: those whose configuration can
        say what the method needs."""

    def preset(self, pixels: int) -> str:
        """The preset where none is asked for; `pixels` is the median shorter side of the images."""

    def stages(self, cfg: Any) -> Sequence[str]:
        """Names of the stages in training order; a method may have more that only training finds out."""

    def searched_spaces(self, cfg: Any, model: Any) -> Sequence[SearchSpace]:
        """The architectures among which it chooses; where each bit-width has a space of its own, the lowest is last."""

    def check(self, cfg: Any, options: Any, model: Any) -> None:
        """Refuse before any training what cannot work for this network. Raises BudgetError (a ValueError) for budgets
        below the cheapest subnet, ValueError for options that do not fit together, FileError for files that lack."""

    def measured(self, cfg: Any, options: Any) -> tuple[int, int]:
        """About how many subnets are measured on the validation images after training, and how many members are handed
        out, float included (oncequant.hours)."""

    def train(self, cfg: Any, run: Run) -> None:
        """Train every stage that has no checkpoint yet. Killed at any time, the same call goes on where it stopped and
        comes to the same weights. It and `choose` begin with `agreed`: a folder without run.json gets one, that of
        another run is refused. Raises TrainingError if a loss is not finite, FileError if the folder is damaged
        or another run's."""

    def choose(self, cfg: Any, options: Any, run: Run) -> list[Member]:
        """Choose members among the subnets of a trained run, without training; they are added to `family.json` with
        their test accuracy (0 to 1), and returned. Raises BudgetError before any measurement if no subnet is within
        the budgets, FileError if what it needs is not trained."""


METHODS: dict[str, Method] = {"oqat": oqat, "qfa": qfa, "dnas": dnas}
DEFAULT_METHOD = "oqat"


def method_of(cfg: TrainingOptions) -> str:
    """The key in METHODS of the method that a Config belongs to. Raises ValueError for another value."""
    for name, method in METHODS.items():
        if type(cfg) is method.Config:
            return name
    raise ValueError(f"the options are a {type(cfg).__name__}, not the Config of a method: {', '.join(METHODS)}")
