"""QFA's claim C6: how well the accuracy predictor ranks architectures, against the number of measured ones.

    python recipes/qfa_predictor.py RUN [--measured 700] [--held-out 200] [--out results/NAME.csv]

RUN is a folder of `oncequant run --method qfa`. Architectures (uniform and the official mixture in turn, another seed
than the search's) are measured on the validation images; a random part is held out, predictors are fitted to growing
parts of the rest; mean and standard deviation over several such divisions. The measurements resume after a kill.
`ceiling` estimates what can be reached: the Kendall tau between the validation accuracies and those of a second
measurement with as much noise, independent for each architecture, though they share their validation images.
"""

from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated

import numpy as np
import tyro
from scipy.stats import kendalltau
from tables import publish

from oncequant.checkpoint import load_supernet
from oncequant.methods import qfa
from oncequant.run_folder import open_run
from oncequant.search.measurements import MeasurementFile, read_measurements
from oncequant.search.predictor import fit_predictor
from oncequant.search.supernet import measure_codes


@dataclass(frozen=True)
class Options:
    """What to measure."""

    run: Annotated[Path, tyro.conf.Positional]
    measured: int = 700
    held_out: int = 200
    sizes: tuple[int, ...] = (50, 100, 200, 500, 1000, 2000)
    divisions: int = 5
    data: str | None = None
    """Where the run's images are now, if they have moved."""
    out: Path | None = None


def main(options: Options) -> None:
    """Measure what is missing, fit and print a table."""
    settings = open_run(options.run)
    cfg = qfa.Config(**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.method_config.items()})
    data, supernet = settings.load_data("cpu"), load_supernet(options.run, "mixed")
    space, memory = supernet.space, MeasurementFile(options.run / "predictor_claim.jsonl", "mixed")
    codes = qfa.sample_codes(space, np.random.default_rng([cfg.seed, 6]), options.measured)
    measure_codes(supernet, memory, codes, "claim", cfg.calibration(data), data)
    found = {m.arch: m.top1 for m in read_measurements(memory.path)}
    codes = np.array([space.encode(space.complete(arch)) for arch in found])
    top1, rows = np.array(list(found.values())), []
    again = np.random.default_rng(0).binomial(len(data.validation), top1) / len(data.validation)
    ceiling = kendalltau(top1, again).statistic
    for size in [n for n in options.sizes if n <= len(top1) - options.held_out]:
        taus, errors = [], []
        for division in range(options.divisions):
            order = np.random.default_rng(division).permutation(len(top1))
            out, kept = order[: options.held_out], order[options.held_out :][:size]
            predicted = fit_predictor(space, codes[kept], top1[kept], seed=division).top1(codes[out])
            taus.append(kendalltau(predicted, top1[out]).statistic)
            errors.append(100 * np.sqrt(np.square(predicted - top1[out]).mean()))
        row = dict(data=data.name, pairs=size, held_out=options.held_out, divisions=options.divisions)
        row |= dict(kendall_tau=round(mean(taus), 3), std=round(stdev(taus), 3), rmse_percent=round(mean(errors), 2))
        rows.append(row | dict(validation_images=len(data.validation), ceiling=round(float(ceiling), 3)))
    publish(rows, options.out)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
