"""What splits and pictures are called in public data sets, how a source is to be read, and what is accepted as one."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

TABLES = frozenset([".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"])
ARCHIVES = frozenset(".zip .tar .gz .tgz .bz2 .xz .7z .rar .zst".split())
SPLITS = ("train", "validation", "test")
ACCEPTED = (
    "accepted are 'digits', a folder of class folders (directly inside, or below train/ and optionally validation/ and "
    "test/), a folder of pictures with a table (CSV, TSV, JSONL) of files and labels, a folder of parquet files, or "
    "the name of a Hugging Face hub dataset such as 'uoft-cs/cifar10'"
)


@dataclass(frozen=True)
class Reading:
    """How a source is read, where its look leaves a choice."""

    layout: Literal["auto", "classes", "splits"] = "auto"
    """Whether its folders are classes or splits; auto looks at their names and at what they hold."""
    image_column: str | None = None
    """Column of a table that has the pictures or their files."""
    label_column: str | None = None
    """Column of a table that has the labels."""


AUTO = Reading()


_WORDS = {
    "train": "train training tr trn",
    "validation": "val valid validate validation dev devel development eval evaluate evaluation",
    "test": "test testing tst holdout",
}
_SPLIT_OF = {word: split for split, words in _WORDS.items() for word in words.split()}
# What stands beside the word of a split and says nothing of what is seen in the pictures.
_NEUTRAL = frozenset(
    "set sets data dataset datasets image images img imgs picture pictures photo photos pic pics jpg jpeg png file "
    "files split splits folder folders dir directory part parts batch shard chunk of the my new final full all small "
    "tiny big public private partial original orig raw cropped resized sample samples subset partition clean v label "
    "labels labeled labelled class classes seg cifar mnist imagenet ilsvrc coco voc default x y".split()
)
_UNLABELLED = frozenset("pred preds predict prediction predictions unlabeled unlabelled unknown submission".split())
_GLUED = re.compile(  # trainset, testimages, valdata
    f"({'|'.join(sorted(_SPLIT_OF, key=len, reverse=True))})"
    "(sets?|data|dataset|images?|imgs?|pictures?|photos?|splits?|folders?|dir|labels?|files?)"
)


def words_of(name: str) -> list[str]:
    """The words of a name in lower case, without digits: at _ - . and spaces, and where capitals begin a word."""
    name = re.sub(r"(?i)hold[-_. ]?out", "holdout", name)
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+", name)]


def split_and_rest(name: str) -> tuple[str | None, tuple[str, ...]]:
    """The split that the words of a name tell, or None for none or several; and its words that name no split and say
    something. A split needs those to be none, or shared with its siblings: "train_set", or "pets_train" beside
    "pets_test", but not "bullet train"."""
    found: list[str] = []
    rest: list[str] = []
    for word in words_of(name):
        glued = _GLUED.fullmatch(word)
        if word == "trainval":
            found.append("train")
        elif split := _SPLIT_OF.get(glued[1] if glued else word):
            found.append(split)
        elif word not in _NEUTRAL:
            rest.append(word)
    kinds = set(found)
    if kinds == {"train", "validation"}:  # what both together are called
        kinds = {"train"}
    return (kinds.pop() if len(kinds) == 1 else None), tuple(rest)


def split_of(name: str) -> str | None:
    """The split that a name tells by itself, else None."""
    split, rest = split_and_rest(name)
    return split if not rest else None


def splits_of(names: Iterable[str]) -> dict[str, str]:
    """Names of siblings that are splits, and which: by themselves, or by words that two different splits share."""
    told = {name: split_and_rest(name) for name in names}
    shared: dict[tuple[str, ...], set[str]] = {}
    for split, rest in told.values():
        if split:
            shared.setdefault(rest, set()).add(split)
    return {name: split for name, (split, rest) in told.items() if split and (not rest or len(shared[rest]) > 1)}


def is_neutral(name: str) -> bool:
    """Whether a name says nothing of what is seen in the pictures: "images", "data_1"."""
    return bool(words_of(name)) and split_and_rest(name) == (None, ())


def is_unlabelled(name: str) -> bool:
    """Whether a name tells that the pictures have no labels: "seg_pred", "unlabelled"."""
    return not _UNLABELLED.isdisjoint(words_of(name))


def listed(names: Iterable[object], most: int = 5) -> str:
    """Names for a message, the first few of many."""
    texts = list(map(str, names))
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")
