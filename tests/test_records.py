"""Every kind of record keeps the same promises; `EXAMPLES` has one of each."""

import json
from dataclasses import MISSING, fields, replace

import pytest

from oncequant.arch import Arch
from oncequant.files import FileError
from oncequant.records import (
    RECORDS,
    Command,
    Distribution,
    Export,
    Measurement,
    Member,
    Metrics,
    Probe,
    Sample,
    Time,
    append_record,
    from_json,
    read_records,
    to_json,
    write_records,
)

ARCH = Arch({"resolution": 8, "stage1.depth": 2})
MEMBER = dict(name="2bit-L", stage="2bit", bits=2, arch=ARCH, top1_validation=0.9, top1_test=0.88, costs={"macs": 10})
EXAMPLES = {  # a record as it is in memory, and its JSON in the file
    Command: (
        Command("oncequant run", "0.1.0", None, "CPU, 2 threads"),
        '{"command": "oncequant run", "version": "0.1.0", "commit": null, "device": "CPU, 2 threads"}',
    ),
    Time: (
        Time(stage="float", step=20, time_s=1.5),
        '{"stage": "float", "step": 20, "time_s": 1.5}',
    ),
    Metrics: (
        Metrics("float", 20, 100, values={"loss": 2.25, "lr": 0.1, "images": 1280}),
        '{"stage": "float", "step": 20, "steps": 100, "loss": 2.25, "lr": 0.1, "images": 1280}',
    ),
    Measurement: (
        Measurement(ARCH, 0.75, {"macs": 10, "weight_bytes": 2.5}, "4bit", "random", 0.5),
        '{"arch": {"resolution": 8, "stage1.depth": 2}, "top1": 0.75, "costs": {"macs": 10, "weight_bytes": 2.5}, '
        '"stage": "4bit", "searcher": "random", "balanced": 0.5}',
    ),
    Member: (
        Member(**MEMBER, top1_predicted=0.91, balanced_validation=0.8, balanced_test=0.78, metric="balanced"),
        '{"name": "2bit-L", "stage": "2bit", "bits": 2, "arch": {"resolution": 8, "stage1.depth": 2}, '
        '"top1_validation": 0.9, "top1_test": 0.88, "top1_predicted": 0.91, "balanced_validation": 0.8, '
        '"balanced_test": 0.78, "metric": "balanced", "costs": {"macs": 10}}',
    ),
    Sample: (
        Sample("samples/0/network", ARCH, 0.5, {"bitops": 4096}, 0.25),
        '{"stage": "samples/0/network", "arch": {"resolution": 8, "stage1.depth": 2}, "top1_validation": 0.5, '
        '"costs": {"bitops": 4096}, "balanced_validation": 0.25}',
    ),
    Export: (
        Export("2bit-L", "exports/2bit-L", ["wrong"], "2bit", ARCH, {"images": 10, "top1_deployed": 0.5}),
        '{"name": "2bit-L", "folder": "exports/2bit-L", "problems": ["wrong"], "stage": "2bit", '
        '"arch": {"resolution": 8, "stage1.depth": 2}, "images": 10, "top1_deployed": 0.5}',
    ),
    Probe: (
        Probe("4bit", ARCH, 10, "ffc0"),
        '{"stage": "4bit", "arch": {"resolution": 8, "stage1.depth": 2}, "images": 10, "right": "ffc0"}',
    ),
    Distribution: (
        Distribution(10, 40, {"stage1.block1.precision": [0.25, 0.75]}),
        '{"step": 10, "steps": 40, "probabilities": {"stage1.block1.precision": [0.25, 0.75]}}',
    ),
}


@pytest.fixture(params=RECORDS.items(), ids=lambda pair: pair[0])
def case(request, tmp_path):
    """File, kind, a record of it and what JSON makes of it."""
    name, kind = request.param
    record, text = EXAMPLES[kind]
    return tmp_path / name, kind, record, json.loads(text)


def write_rows(path, rows):
    lines = path.suffix == ".jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) if lines else json.dumps(rows))


def place(path, number):
    return rf"{path.name}, {'line' if path.suffix == '.jsonl' else 'record'} {number}: "


def test_records_come_back_and_their_files_have_the_form_they_always_had(case):
    path, kind, record, row = case
    assert json.dumps(to_json(record)) == EXAMPLES[kind][1] and from_json(kind, row) == record
    write_records(path, [record, record])
    assert read_records(path, kind) == [record, record]
    lines, listed = f"{EXAMPLES[kind][1]}\n" * 2, json.dumps([row, row], indent=1) + "\n"
    assert path.read_text() == (lines if path.suffix == ".jsonl" else listed)


def test_a_missing_file_has_no_records(case):
    path, kind, *_ = case
    assert read_records(path, kind) == []


def test_fields_that_older_folders_lack_have_defaults_and_all_others_must_be_there(case):
    path, kind, record, row = case
    for of in fields(kind):
        if of.metadata.get("rest"):
            continue
        write_rows(path, [row, {key: value for key, value in row.items() if key != of.name}])
        if of.default is MISSING:
            with pytest.raises(FileError, match=place(path, 2) + f"'{of.name}' is missing"):
                read_records(path, kind)
        else:
            assert read_records(path, kind) == [record, replace(record, **{of.name: of.default})]
            assert of.name not in to_json(replace(record, **{of.name: of.default}))


@pytest.mark.parametrize("wrong", [True, {"a": "b"}, ["c", None], {"a": [None]}])
def test_values_of_another_type_are_refused(case, wrong):
    path, kind, _, row = case
    for key in row:
        write_rows(path, [row, row | {key: wrong}])
        with pytest.raises(FileError, match=place(path, 2) + rf"{key}(\.a)? is .*, not (a |text)"):
            read_records(path, kind)


def test_other_json_is_refused(case):
    path, kind, _, row = case
    for other in (1, None, "text", [row]):
        write_rows(path, [other])
        with pytest.raises(FileError, match=place(path, 1) + "not a JSON object"):
            read_records(path, kind)
    if not any(of.metadata.get("rest") for of in fields(kind)):  # whose values have any names
        write_rows(path, [row | {"surprise": 1}])
        with pytest.raises(FileError, match=place(path, 1) + "unknown field 'surprise'"):
            read_records(path, kind)


def test_torn_ends_are_left_out_and_torn_lines_are_errors(case):
    path, kind, record, row = case
    whole = EXAMPLES[kind][1]
    if path.suffix == ".json":
        path.write_text(f"[{whole}, {whole[:-5]}")
        with pytest.raises(FileError, match=path.name):
            read_records(path, kind)
        return
    for length in (1, len(whole) // 2, len(whole)):  # even if only the line end is missing
        path.write_text(f"{whole}\n{whole[:length]}")
        assert read_records(path, kind) == [record]
    append_record(path, record)
    assert path.read_text() == f"{whole}\n{whole}\n"
    path.write_text(f"{whole}\n{whole[:-5]}\n{whole}\n")
    with pytest.raises(FileError, match=f"{path.name}, line 2"):
        read_records(path, kind)


@pytest.mark.parametrize("top1", [-0.1, 71.3, float("nan")])
def test_accuracies_are_shares(case, top1):
    path, kind, record, row = case
    shares = "top1", "top1_validation", "top1_test", "balanced", "balanced_validation", "balanced_test"
    for key in [key for key in row if key in shares]:
        with pytest.raises(ValueError, match=rf"{key} must be in \[0, 1\]"):
            replace(record, **{key: top1})
        write_rows(path, [row | {key: top1}])
        with pytest.raises(FileError, match=place(path, 1) + rf"{key} (must be in \[0, 1\]|is nan, not)"):
            read_records(path, kind)


def test_every_kind_has_an_example_and_a_docstring_that_names_its_file():
    assert set(RECORDS.values()) == set(EXAMPLES)
    for name, kind in RECORDS.items():
        assert f"`{name}`" in kind.__doc__


def test_a_family_written_before_there_were_predictors_and_balanced_accuracies_is_read():
    row = json.loads(json.dumps(MEMBER | {"arch": dict(ARCH), "bits": None}))
    assert from_json(Member, row) == replace(Member(**MEMBER), bits=None)
    assert to_json(from_json(Member, row)) == row
