"""What `--class-weights balanced` and `--metric balanced` are worth on imbalanced data, for one seed.

    python recipes/imbalanced_digits.py --out runs/imbalanced --seed 0
    python recipes/imbalanced_digits.py --out runs/imbalanced --summarise results/NAME.csv

scikit-learn's digits, of which a fifth is the test split. Of the other images of five classes, 5 to 9, a tenth is kept.
OQAT at 4 bits, default options but for one bit-width; 40 subnets measured. For the float network and the most accurate
4-bit one: balanced accuracy on the test images, and top-1 as it is where classes are as frequent as in training, the
recalls weighted by that.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from sklearn.datasets import load_digits
from tables import over_seeds, publish

import oncequant as oq
from oncequant.answers import answers_path, read_answers
from oncequant.files import read_json, write_json

KEPT = 0.1
RARE = range(5, 10)


@dataclass(frozen=True)
class Options:
    """One seed of the experiment."""

    out: Path
    seed: int = 0
    summarise: Path | None = None
    """Only write this CSV from the seeds found in `out`."""


def main(options: Options) -> None:
    """Run one seed, or summarise."""
    if options.summarise:
        return summarise(options.out, options.summarise)
    train, test = imbalanced(options.seed)
    prior = np.bincount([label for _, label in train], minlength=10) / len(train)
    rows = []
    for weights in ("none", "balanced"):
        cfg = oq.oqat.Config(bit_schedule=(4,), class_weights=weights, seed=options.seed, precision="float32")
        folder = options.out / f"seed{options.seed}" / weights
        run = oq.new_run(cfg, (train, None, test), folder)
        oq.train_run(cfg, run)
        for metric in ("top1", "balanced"):
            for member in oq.search_run(cfg, run, metric=metric, evaluations=40):
                answers = read_answers(answers_path(folder, member.stage, member.arch))
                if answers is not None and member.name in ("float-max", "4bit-L"):
                    frequent = float(np.dot(prior, [recall or 0.0 for recall in answers.recall]))
                    about = dict(seed=options.seed, weights=weights, metric=metric, network=member.name)
                    rows.append(about | dict(balanced=answers.accuracy.balanced, top1_as_in_training=frequent))
    write_json(options.out / f"seed{options.seed}" / "rows.json", rows)
    summarise(options.out, None)


def imbalanced(seed: int) -> tuple[list, list]:
    """(image, label) of the training images, of which five classes are rare, and of the test images."""
    digits, rng = load_digits(), np.random.default_rng(seed)
    pixels, labels = (digits.images * 255 / 16).round().astype(np.uint8), digits.target
    train, test = [], []
    for label in range(10):
        own = rng.permutation(np.flatnonzero(labels == label))
        fifth = len(own) // 5
        test += own[:fifth].tolist()
        rest = own[fifth:]
        train += rest[: round(KEPT * len(rest))].tolist() if label in RARE else rest.tolist()
    return [[(pixels[i], int(labels[i])) for i in sorted(part)] for part in (train, test)]


def summarise(out: Path, csv_path: Path | None) -> None:
    """Mean and standard deviation over seeds."""
    groups: dict[tuple, dict[int, dict]] = defaultdict(dict)
    for path in sorted(out.glob("seed*/rows.json")):
        for row in read_json(path):
            groups[row["network"], row["weights"], row["metric"]][row["seed"]] = row
    table = []
    for (network, weights, metric), rows in groups.items():
        for figure in ("balanced", "top1_as_in_training"):
            about = dict(network=network, class_weights=weights, metric=metric, figure=figure)
            table.append(about | over_seeds({seed: [row[figure]] for seed, row in rows.items()}))
    publish(table, csv_path)


if __name__ == "__main__":
    main(tyro.cli(Options))
