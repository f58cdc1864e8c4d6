"""Lists of names in the code are the keys of its dictionaries, so that a new entry needs no second place."""

import ast
from pathlib import Path

import pytest

from oncequant.cost import COSTS
from oncequant.export.formats import FORMATS
from oncequant.methods import METHODS
from oncequant.methods.dnas import PRECISIONS
from oncequant.models import FAMILIES, PRESETS
from oncequant.quantizers import INPUT_QUANTIZERS, WEIGHT_QUANTIZERS
from oncequant.search import SEARCHERS

ROOT = Path(__file__).parent.parent
DICTIONARIES = {
    "COSTS": COSTS,
    "FAMILIES": FAMILIES,
    "FORMATS": FORMATS,
    "INPUT_QUANTIZERS": INPUT_QUANTIZERS,
    "METHODS": METHODS,
    "PRECISIONS": PRECISIONS,
    "PRESETS": PRESETS,
    "SEARCHERS": SEARCHERS,
    "WEIGHT_QUANTIZERS": WEIGHT_QUANTIZERS,
}
SELECTIONS = {  # some names of a dictionary, on purpose
    ("__init__.py", "METHODS dnas oqat qfa"): "what is public",
    ("search/predictor.py", "macs bitops"): "what the accuracy predictor reads",
    ("report/contents.py", "bitops weight_bytes"): "costs that sections and pictures are about",
    ("methods/dnas.py", "dorefa lsq"): "quantizers of weights that DNAS has been run with",
    ("methods/dnas.py", "pact lsq"): "quantizers of inputs that need no range of each layer and architecture",
    ("methods/qfa.py", "batchquant lsq running"): "quantizers of inputs whose zero points can be folded",
}


def lists_of_names(path: Path) -> list[tuple[str, ...]]:
    """Every Literal, tuple, list and set of at least two constant texts in a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            values = [one.value if isinstance(one, ast.Constant) else None for one in node.elts]
            if len(values) > 1 and all(isinstance(value, str) for value in values):
                found.append(tuple(values))
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "oncequant").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_lists_of_names_are_the_keys_of_a_dictionary(path):
    for names in lists_of_names(path):
        selected = (path.relative_to(ROOT / "oncequant").as_posix(), " ".join(names)) in SELECTIONS
        for title, dictionary in DICTIONARIES.items():
            known = dictionary.keys() & set(names)
            if len(known) > 1 and 2 * len(known) >= len(names) and not selected:
                whole = [other for other, keys in DICTIONARIES.items() if set(names) - {"auto"} == keys.keys()]
                assert whole, (
                    f"{path.name} lists {', '.join(names)}: take the keys of {title}, or say why in SELECTIONS"
                )


def test_every_selection_is_still_there():
    for path, names in SELECTIONS:
        assert tuple(names.split()) in lists_of_names(ROOT / "oncequant" / path), (path, names)


@pytest.mark.parametrize("title", DICTIONARIES)
def test_names_can_be_typed(title):
    """On a command line, in a file name, in a budget."""
    for name in DICTIONARIES[title]:
        assert name and name == name.lower() and not set(name) - set("abcdefghijklmnopqrstuvwxyz0123456789_-"), name
