"""Schedules that fit into the time there is."""

import math
from dataclasses import replace

import pytest
from commands import call, fails
from pictures import write_folder
from small_training import CONFIG, TINY, digits

from oncequant import hours
from oncequant.files import read_json
from oncequant.methods import METHODS, dnas, oqat
from oncequant.models import PRESETS
from oncequant.records import Measurement, Metrics, append_record, read_records
from oncequant.run_folder import Run
from oncequant.runs import prepare
from oncequant.settings import DataOptions, ModelOptions

OPTIONS = oqat.SearchOptions(evaluations=10)


@pytest.mark.parametrize("duration", [0.5, 3.0])
def test_duration_scales_every_stage(duration):
    cfg = replace(CONFIG, min_steps=10, batch_size=32)
    for stage in oqat.stages(cfg):
        longer = replace(cfg, duration=duration).schedule(stage, digits())
        assert abs(longer.steps - duration * cfg.schedule(stage, digits()).steps) <= 1
        assert longer.warmup <= longer.steps // 20
    with pytest.raises(ValueError, match="duration 0"):
        replace(cfg, duration=0)


def test_times_of_steps_and_of_validation_are_told_apart():
    rows, time = [], 5.0  # the first step starts everything
    for step in range(1, 10):
        time += 0.2 + (1.5 if step in (2, 4, 7, 9) else 0.0)
        values = {"top1_largest": 0.5, "top1_smallest": 0.4} if step in (2, 4, 7, 9) else {}
        rows.append(Metrics("4bit", step, 9, time, {"loss": 1.0, **values}))
    (step, validation, count) = hours._times(rows)["4bit"]
    assert step == pytest.approx(0.2) and validation == pytest.approx(1.5) and count == 2


def test_the_duration_fills_what_the_rest_leaves(tmp_path, monkeypatch):
    run = Run(tmp_path / "unused", TINY, digits())
    monkeypatch.setattr(hours, "rehearse", lambda *_: hours.Forecast(training=100, validation=10, search=20, files=30))
    fitted, evaluations = hours.fitted(CONFIG, OPTIONS, run, 0.1)
    assert evaluations is None and fitted.duration * 100 + 60 == pytest.approx(hours.MARGIN * 360, rel=0.01)
    assert replace(fitted, duration=1.0) == CONFIG
    with pytest.raises(
        ValueError, match="hours 0.015: validation takes 10 s, search 20 s, files 30 s, .*use at least 0.02"
    ):
        hours.fitted(CONFIG, OPTIONS, run, 0.015)


@pytest.mark.parametrize("name, usual", [("oqat", 60), ("qfa", 200)])
def test_the_search_measures_fewer_subnets_where_time_is_short(name, usual, tmp_path, monkeypatch, capsys):
    method, run = METHODS[name], Run(tmp_path / "unused", TINY, digits())
    cfg, options = method.Config(min_steps=10), method.SearchOptions()
    whole = method.measured(cfg, options)[0]
    monkeypatch.setattr(hours, "rehearse", lambda *_: hours.Forecast(training=100, validation=1, search=whole, files=1))
    most = hours.SEARCHING * 3600  # seconds, of an hour; each subnet takes one here
    hour = whole * 0.75 / most
    fitted, evaluations = hours.fitted(cfg, options, run, hour)
    assert hours.FEWEST <= evaluations < usual
    count, more = (method.measured(cfg, replace(options, evaluations=evaluations + i))[0] for i in (0, 1))
    assert (
        count <= most * hour < more and f"measures {evaluations} subnets instead of {usual}" in capsys.readouterr().out
    )
    assert fitted.duration * 100 + count + 2 == pytest.approx(hours.MARGIN * 3600 * hour, rel=0.01)
    assert hours.fitted(cfg, options, run, whole / most)[1] is None  # long enough
    asked = replace(options, evaluations=usual)
    assert hours.fitted(cfg, asked, run, hour)[1] is None  # the user's number stays


def test_fewer_subnets_are_kept_in_the_run_and_measured(tmp_path, monkeypatch, capsys):
    run, few = tmp_path / "run", ["--bit-schedule", "4", "--min-steps", "4", "--epochs", "1", "--float-epochs", "1"]
    few += ["--max-train", "120", "--resolutions", "8", "10", "--calibration-images", "32", "--hours", "0.1"]
    monkeypatch.setattr(hours, "rehearse", lambda *_: hours.Forecast(training=300, validation=1, search=110, files=1))
    call(monkeypatch, "run", "--run", run, *few)
    assert "this command took" in capsys.readouterr().out
    written = read_json(run / "run.json")["settings"]["evaluations"]
    measured = read_records(run / "measurements.jsonl", Measurement)
    assert hours.FEWEST <= written < oqat.EVALUATIONS and len(measured) == written
    call(monkeypatch, "run", "--run", run, *few)
    assert len(read_records(run / "measurements.jsonl", Measurement)) == written


@pytest.mark.parametrize(
    "name, few",
    [
        ("oqat", dict(bit_schedule=(4,))),
        pytest.param("qfa", dict(mixed_subnets=0), marks=pytest.mark.slow),
        pytest.param("dnas", dict(samples=2), marks=pytest.mark.slow),
    ],
)
def test_a_rehearsal_measures_every_part_and_leaves_nothing(name, few, tmp_path):
    method = METHODS[name]
    cfg = method.Config(float_epochs=2, epochs=4, min_steps=0, batch_size=16, calibration_images=32, **few)
    model = replace(PRESETS["resnet20"], image_channels=1, resolutions=(8,)) if name == "dnas" else TINY
    run = Run(tmp_path / "unused", model, digits())
    found = hours.rehearse(cfg, method.SearchOptions(), run)
    assert min(found.training, found.validation, found.search, found.files) > 0
    assert not list(tmp_path.iterdir())


def write_times(folder, stage, step, look):
    """Metrics of a stage of nine steps, each second one followed by a look at the validation images."""
    path, seconds = folder / stage, 0.0
    path.parent.mkdir(parents=True, exist_ok=True)
    for i in range(1, 10):
        seconds += step + (look if i % 2 == 0 else 0)
        values = {"loss": 1.0} | ({"top1": 0.5} if i % 2 == 0 else {})
        append_record(path.parent / "metrics.jsonl", Metrics(path.name, i, 9, seconds, values))


def test_one_bit_width_is_rehearsed_for_all(tmp_path, monkeypatch):
    cfg = oqat.Config(bit_schedule=(4, 3, 2), min_steps=10, batch_size=16, calibration_images=32)

    def train(short, run):
        assert oqat.stages(short) == ("float", "4bit")
        write_times(run.folder, "float", 0.1, 0.5)
        write_times(run.folder, "4bit", 0.4, 0.6)

    monkeypatch.setattr(oqat, "train", train)
    run = Run(tmp_path, TINY, digits())
    found = hours.rehearse(cfg, OPTIONS, run)
    steps = {stage: cfg.schedule(stage, run.data).steps for stage in oqat.stages(cfg)}
    quantized = sum(steps.values()) - steps["float"]
    assert found.training == pytest.approx(steps["float"] * 0.1 + quantized * 0.4, rel=1e-3)
    assert found.validation == pytest.approx(hours.VALIDATIONS * (0.5 + 3 * 0.6), rel=1e-3)
    assert found.search == pytest.approx(3 * 10 * 0.6, rel=1e-3)


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_samples_of_dnas_are_foretold(jobs, tmp_path, monkeypatch):
    """They are trained for as long as the search, so many side by side."""
    cfg = dnas.Config(float_epochs=2, epochs=4, min_steps=0, batch_size=16, calibration_images=32, samples=3, jobs=jobs)
    times = {"float": 0.1, "search": 0.4} | {dnas.sample_stage(i): 0.2 for i in range(3)}

    def train(short, run):
        for stage, step in times.items():
            write_times(run.folder, stage, step, 0.5)

    monkeypatch.setattr(dnas, "train", train)
    run = Run(tmp_path, TINY, digits())
    found = hours.rehearse(cfg, dnas.SearchOptions(), run)
    steps = {stage: cfg.schedule(stage, run.data).steps for stage in times}
    alone = sum(steps[stage] * times[stage] for stage in times if stage.startswith("samples"))
    together = steps["float"] * 0.1 + steps["search"] * 0.4 + alone / jobs
    assert found.training == pytest.approx(together, rel=1e-3)
    assert found.validation == pytest.approx(hours.VALIDATIONS * (2 + 3 / jobs) * 0.5, rel=1e-3)
    assert found.search == pytest.approx(3 * 0.5, rel=1e-3)  # so few images that a look is at all of them


def test_a_run_keeps_its_schedule_when_it_goes_on(tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    words = ["train", "--run", run, "--max-train", "120", "--preset", "nano", "--resolutions", "8", "--width", "0.5"]
    words += [
        "--depths",
        "1",
        "--calibration-images",
        "32",
        "--bit-schedule",
        "4",
        "--min-steps",
        "40",
        "--epochs",
        "1",
        "--float-epochs",
        "1",
        "--hours",
        "0.01",
    ]
    monkeypatch.setattr(hours, "rehearse", lambda *_: hours.Forecast(training=300, validation=1, search=0, files=0))
    call(monkeypatch, *words)
    assert read_json(run / "run.json")["method_config"]["min_steps"] == 40
    said = " ".join(capsys.readouterr().out.split())
    duration = read_json(run / "run.json")["method_config"]["duration"]
    assert f"schedules {duration:g} times as long" in said and math.isfinite(duration)
    call(monkeypatch, *words)
    assert f"goes on with schedules {duration:g} times" in " ".join(capsys.readouterr().out.split())
    assert "--hours 0.0: use 0.001" in fails(monkeypatch, capsys, *words[:-1], "0")


def test_a_long_run_is_foretold_and_a_short_one_is_not(tmp_path, monkeypatch, capsys):
    run = Run(tmp_path / "unused", TINY, digits())
    monkeypatch.setattr(hours, "rehearse", lambda *_: hours.Forecast(training=600, validation=10, search=20, files=30))
    hours.tell_time(CONFIG, OPTIONS, run)
    assert not capsys.readouterr().out
    hours.tell_time(replace(CONFIG, min_steps=10**6, duration=2.0), OPTIONS, run)
    said = "takes about 21 min: training 20 min, validation, search and files 60 s; --hours fits it into less"
    assert said in capsys.readouterr().out


def test_a_preset_that_was_left_open_gets_smaller_where_time_is_short(tmp_path, monkeypatch, capsys):
    write_folder(tmp_path / "images", size=(100, 100))
    slow = {"resnet-photo": 100_000, "resnet-64": 20_000, "resnet-cifar": 5_000}  # seconds of training by default
    seen = []

    def rehearse(cfg, options, run):
        preset = next(name for name in slow if set(run.model.resolutions) <= set(PRESETS[name].resolutions))
        seen.append(preset)
        return hours.Forecast(training=slow[preset], validation=10, search=10, files=2 * 3600 * (len(seen) == 1))

    monkeypatch.setattr(hours, "rehearse", rehearse)
    where = DataOptions(data=str(tmp_path / "images"), run=tmp_path / "run")
    cfg, run = prepare(oqat.Config(), where, hours=1)
    assert seen == ["resnet-photo", "resnet-64"] and 0.1 < cfg.duration < 0.2
    assert read_json(run.folder / "run.json")["settings"]["preset"] == "resnet-64"
    said = " ".join(capsys.readouterr().out.split())
    assert "preset resnet-photo would train 0 times as long as by default, so resnet-64 is taken" in said
    again = prepare(oqat.Config(), where, hours=1)  # goes on, without a rehearsal
    assert len(seen) == 2 and again[0] == cfg and again[1].model == run.model

    asked = replace(where, run=tmp_path / "asked")
    with pytest.raises(ValueError, match="hours 0.1: "):  # the user's own choice is not changed
        seen.clear()
        prepare(oqat.Config(), asked, ModelOptions("resnet-photo"), hours=0.1)
    seen.append("")
    assert prepare(oqat.Config(), asked, ModelOptions("resnet-photo"), hours=1)[0].duration < 0.1
    shortest = prepare(oqat.Config(), replace(where, run=tmp_path / "shortest"), hours=0.1)
    assert seen[-1] == "resnet-cifar" and shortest[0].duration < 0.1
