"""The file of measurements: each once, every searcher credited, half-written lines cut off."""

import numpy as np
import pytest
from small_spaces import NANO

from oncequant.answers import Accuracy
from oncequant.arch import Arch
from oncequant.records import Measurement, read_records
from oncequant.search.measurements import MeasurementFile, all_costs


def test_each_architecture_is_measured_once_and_every_searcher_is_credited(tmp_path):
    path, calls = tmp_path / "measurements.jsonl", []
    rng = np.random.default_rng(0)
    archs = [NANO.sample(rng) for _ in range(3)]

    def measure(arch):
        calls.append(arch)
        return Accuracy(0.25 * len(calls), 0.5)

    first = MeasurementFile(path, "4bit").measured(NANO, measure, "first")
    values = list(first(archs))
    assert list(first(archs)) == values == [0.25, 0.5, 0.75] and len(calls) == 3
    reread = MeasurementFile(path, "4bit")
    second = reread.measured(NANO, measure, "second")
    assert list(second([archs[1], archs[1]])) == [0.5, 0.5] and len(calls) == 3
    other_stage = MeasurementFile(path, "2bit").measured(NANO, measure, "first")
    assert list(other_stage(archs[:1])) == [1.0] and len(calls) == 4

    written = read_records(path, Measurement)
    assert [(m.searcher, m.stage, m.top1) for m in written] == [
        ("first", "4bit", 0.25),
        ("first", "4bit", 0.5),
        ("first", "4bit", 0.75),
        ("second", "4bit", 0.5),
        ("first", "2bit", 1.0),
    ]
    assert [NANO.complete(m.arch) for m in written] == [archs[i] for i in (0, 1, 2, 1, 0)]
    assert all(m.costs == all_costs(NANO, NANO.complete(m.arch)) for m in written)
    assert "stem.weight_bits" not in path.read_text()  # the brief architecture, without what cannot differ


def test_half_written_last_line_is_ignored_and_cut_off(tmp_path):
    path = tmp_path / "measurements.jsonl"
    small, large = NANO.smallest(), NANO.largest()
    list(MeasurementFile(path, "4bit").measured(NANO, lambda arch: Accuracy(0.5, 0.5), "a")([small]))
    whole = path.read_bytes()
    for length in (1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole + whole[:length])
        assert [m.top1 for m in read_records(path, Measurement)] == [0.5]
    file = MeasurementFile(path, "4bit")
    assert list(file.measured(NANO, lambda arch: Accuracy(0.75, 0.5), "a")([large])) == [0.75]
    assert path.read_bytes().startswith(whole)
    assert [m.top1 for m in read_records(path, Measurement)] == [0.5, 0.75]
    path.write_bytes(whole[:-1])  # even of the first line only the line end is missing
    assert read_records(path, Measurement) == []


def test_file_of_another_space_is_refused(tmp_path):
    spaces = [NANO.restrict({"resolution": r}) for r in NANO.choices["resolution"][:2]]
    file = MeasurementFile(tmp_path / "measurements.jsonl", "4bit")
    list(file.measured(spaces[0], lambda arch: Accuracy(0.5, 0.5), "a")([spaces[0].smallest()]))
    with pytest.raises(ValueError, match="another search space"):
        list(file.measured(spaces[1], lambda arch: Accuracy(0.5, 0.5), "a")([spaces[1].smallest()]))


@pytest.mark.parametrize("top1", [float("nan"), -0.1, 71.3])
def test_impossible_accuracy_is_not_written(tmp_path, top1):
    path = tmp_path / "measurements.jsonl"
    for wrong in (Accuracy(top1, 0.5), Accuracy(0.5, top1)):
        measured = MeasurementFile(path, "4bit").measured(NANO, {NANO.largest(): wrong}.get, "a")
        with pytest.raises(ValueError, match=r"in \[0, 1\]"):
            list(measured([Arch(NANO.largest())]))
    assert not path.exists()
