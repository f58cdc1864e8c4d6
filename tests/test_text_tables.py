"""Tables of measurements in the text are those that the CSV files in results/ give."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "recipes"))  # recipes import each other as scripts do

import write_tables  # noqa: E402
from text_tables import TABLES  # noqa: E402
from text_tables.cells import Row, TableError, fixed, markdown, one, reader  # noqa: E402

DOCUMENTS = write_tables.documents(ROOT)
NO_MEASUREMENTS = {  # the first line of tables with decimals or percent signs that are no measurements
    "| format | files | what |",  # docs/export.md: a version of ONNX Runtime
    "| number | what is drawn again for its interval |",  # docs/analysis.md: the address of a paper
    "| | `ram_bytes` | `flash_bytes` |",  # docs/export.md: what the costs mean; a version of a compiler
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The documents and results alone."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("*.png"))
    shutil.copytree(ROOT / "results", tmp_path / "results")
    shutil.copy(ROOT / "README.md", tmp_path)
    return tmp_path


def run(root: Path, check: bool = False) -> int:
    return write_tables.main(write_tables.Options(check, root))


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) >= 1, old
    path.write_text(text.replace(old, new, 1))


def test_text_and_results_agree() -> None:
    command = [sys.executable, str(ROOT / "recipes" / "write_tables.py"), "--check"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", ""), "run python recipes/write_tables.py"


def tables_outside(text: str) -> list[list[str]]:
    """The markdown tables of a text that stand between no markers."""
    found: list[list[str]] = []
    inside, before = False, ""
    for line in text.split("\n"):
        inside = line != "<!-- end -->" and (inside or bool(write_tables.BEGIN.fullmatch(line)))
        if line.startswith("|") and not inside:
            found += [] if before.startswith("|") else [[]]
            found[-1].append(line)
        before = line
    return found


def measures(table: list[str]) -> bool:
    return any(re.search(r"\d\.\d|[^\w.]\.\d|\d ?%", line) for line in table[2:])


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_table_with_measurements_is_made_of_results(path: Path) -> None:
    typed = [table[0] for table in tables_outside(path.read_text()) if measures(table)]
    assert set(typed) <= NO_MEASUREMENTS, "make a function in recipes/text_tables/ (CONTRIBUTING.md)"


def test_a_typed_table_would_be_found() -> None:
    made = "<!-- table step -->\n| a |\n|---|\n| 1.5 |\n<!-- end -->\n"
    typed = ["| 1.5 |", "| .345 |", "| 12 % |"]
    for cell in typed:
        (table,) = tables_outside(f"{made}\n| a |\n|---|\n{cell}\n")
        assert measures(table)
    assert not measures(["| a |", "|---|", "| `stage1.depth`, 4 bits, x.py |"])
    assert NO_MEASUREMENTS <= {t[0] for p in DOCUMENTS for t in tables_outside(p.read_text()) if measures(t)}


def test_every_table_stands_somewhere() -> None:
    used = {name for path in DOCUMENTS for name in write_tables.BEGIN.findall(path.read_text())}
    assert used == set(TABLES)


def test_a_changed_digit_in_the_text_is_found_and_mended(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copy / "results" / "README.md"
    before = path.read_text()
    change(path, "| 4 bits | 98.79 +- 0.70 | 3 |", "| 4 bits | 98.79 +- 0.71 | 3 |")
    assert run(copy, check=True) == 1
    assert capsys.readouterr().out == ("results/README.md: table digits_oqat_most_accurate differs from results/\n")
    assert "0.71 | 3 |" in path.read_text()  # a check writes nothing
    assert run(copy) == 0 and path.read_text() == before
    assert "digits_oqat_most_accurate written" in capsys.readouterr().out
    assert run(copy, check=True) == 0


def test_a_changed_csv_is_found_in_both_documents(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(copy / "results" / "digits_oqat-claims_cpu_202611.csv", "direct,3,12,96.08,0.68", "direct,3,12,91.01,0.1")
    assert run(copy, check=True) == 1
    out = capsys.readouterr().out
    assert out.splitlines() == [
        "docs/claims.md: table all_claims differs from results/",
        *(f"{name}: table digits_oqat_claims differs from results/" for name in ("docs/oqat.md", "results/README.md")),
    ]
    assert run(copy) == 0
    for name in ("docs/oqat.md", "results/README.md"):  # 95.50 +- 1.05 less 91.01 +- 0.1 of three seeds each
        assert "91.01 +- 0.10 | 4.49 (1.91 to 7.07) | confirmed |" in (copy / name).read_text()


@pytest.mark.parametrize("old, new, words", [
    ("<!-- table step -->", "<!-- table steps -->", "results/README.md, line .*unknown table 'steps'; use .*step"),
    ("<!-- table step -->", "", "results/README.md, line .*<!-- end --> without a table"),
    ("<!-- end -->", "", "results/README.md, line .*table digits_oqat_most_accurate has no <!-- end --> before"),
    ("| 4 bits | 98.79", "4 bits: 98.79", "table digits_oqat_most_accurate has no <!-- end --> before this line"),
])  # fmt: skip
def test_markers_that_do_not_fit(copy: Path, old: str, new: str, words: str) -> None:
    change(copy / "results" / "README.md", old, new)
    change(copy / "README.md", "82.4", "82.5")
    for check in (True, False):
        with pytest.raises(TableError, match=words):
            run(copy, check)
    assert "82.5" in (copy / "README.md").read_text()  # nothing is written where something is wrong


def test_the_last_table_without_an_end(copy: Path) -> None:
    with (copy / "docs" / "own.md").open("a") as file:
        file.write("\n<!-- table step -->\n")
    with pytest.raises(TableError, match="docs/own.md: table step has no <!-- end -->"):
        run(copy)


def test_results_that_are_not_there(copy: Path) -> None:
    path = copy / "results" / "step_cpu_202611.csv"
    whole = path.read_text()
    for text, words in (
        (whole.replace(",ms,", ",milliseconds,", 1), "step_cpu_202611.csv has no column 'ms'; it has code, preset,"),
        (whole.replace("385.5", "fast"), "step_cpu_202611.csv: 'fast' in column 'ms' is no number"),
        (whole.replace("ours,cifar,max", "ours,cifar,most"), "no row with bits = 32, code = ours"),
        (
            whole.replace("official OQA,imagenet,max", "official OFA,imagenet,max"),
            "has 2 rows with code = official",
        ),
        (whole.replace("385.5,787", "385.5"), "one that has not a cell for every column"),
        ("", "step_cpu_202611.csv: no rows"),
    ):
        path.write_text(text)
        with pytest.raises(TableError, match=f"results/README.md, table step: .*{words}"):
            run(copy)
    path.unlink()
    with pytest.raises(TableError, match="README.md, table step: cannot read results/step_cpu_202611.csv: No such"):
        run(copy)


def test_the_command_says_one_line_of_an_error(copy: Path) -> None:
    (copy / "results" / "step_cpu_202611.csv").unlink()
    command = [sys.executable, str(ROOT / "recipes" / "write_tables.py"), "--root", str(copy)]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 1 and found.stderr.startswith("error: results/README.md, table step: cannot read")
    assert found.stderr.count("\n") == 1


def test_halves_are_rounded_up_as_people_do() -> None:
    assert [fixed(100 * 0.3585, 1), fixed(0.125), fixed(-0.125), fixed(1234.5, 0), fixed(2.0)] == [
        "35.9", "0.13", "-0.13", "1,235", "2.00"
    ]  # fmt: skip


def test_rows_and_lines(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('name,size\n"a, b",1\nc,2\n')
    rows = reader(tmp_path)("x")
    assert one(rows, name="a, b") == Row("x.csv", {"name": "a, b", "size": "1"}) and rows[1].number("size") == 2
    assert markdown(["", "x"], [["a", ""]]) == "| | x |\n|---|---|\n| a | |"
    with pytest.raises(TableError, match="a line of 1 cells under a head of 2"):
        markdown(["", "x"], [["a"]])
