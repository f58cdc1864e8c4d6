"""Runs made before the redesign (dc8e247) can still be opened; tests/old_runs has the run.json of each method."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import call
from own_networks import Tiny

import oncequant as oq
from oncequant.data import splits
from oncequant.files import FileError
from oncequant.methods import METHODS
from oncequant.models import PRESETS, build_network, family_of
from oncequant.run_folder import read_settings
from oncequant.runs import prepare
from oncequant.settings import DataOptions

OLD = Path(__file__).parent / "old_runs"


@pytest.mark.parametrize("method", METHODS)
def test_settings_of_old_runs_are_read(method, tmp_path, monkeypatch, capsys):
    shutil.copy(OLD / f"{method}.json", tmp_path / "run.json")
    settings = read_settings(tmp_path)
    cfg = METHODS[method].Config.from_json(settings.method_config)
    assert settings.method == method and family_of(settings.model) in METHODS[method].families
    assert METHODS[method].stages(cfg)[0] == "float" and cfg.optimizer == "adamw" and cfg.duration == 1
    assert getattr(cfg, "float_sandwich", True)  # there was no other way
    assert METHODS[method].searched_spaces(cfg, settings.model)[-1].size() > 1
    build_network(settings.model)
    call(monkeypatch, "info", tmp_path)
    assert "stages trained: none" in " ".join(capsys.readouterr().out.split())


def test_an_option_that_is_gone_is_refused_where_it_had_changed_something(tmp_path):
    values = json.loads((OLD / "qfa.json").read_text())["settings"]["method_config"]
    assert values["kurtosis"] == 0
    METHODS["qfa"].Config.from_json(values)
    with pytest.raises(ValueError, match="kurtosis = 0.015: this version of oncequant has no such option"):
        METHODS["qfa"].Config.from_json({**values, "kurtosis": 0.015})


def test_what_is_left_open_is_as_the_folder_has_it(tmp_path, monkeypatch):
    """Though presets and the part for validation were others in the version that made it."""
    cfg, folder, now = oq.oqat.Config(), tmp_path / "run", PRESETS["resnet-nano"]
    with monkeypatch.context() as older:
        older.setitem(PRESETS, "resnet-nano", replace(now, stem_bits=5, depths=(1,), resolutions=(8,)))
        older.setitem(splits.FRACTIONS, "validation", 0.3)
        first = oq.new_run(cfg, "digits", folder)
        own = oq.own_network(Tiny(), torch.zeros(1, 1, 8, 8))
        with_own = oq.new_run(cfg, "digits", tmp_path / "own", model=own)
    assert len(oq.new_run(cfg, "digits", tmp_path / "own", model=own).data.validation) == len(with_own.data.validation)
    assert first.model.stem_bits == 5 and len(first.data.validation) > 400
    for named in ("auto", "resnet-nano"):
        again = oq.new_run(cfg, "digits", folder, named)
        assert again.model == first.model and again.data.fingerprint == first.data.fingerprint
    with pytest.raises(FileError, match="depths .there .1., now .1, 2."):  # what is asked for is not
        oq.new_run(cfg, "digits", folder, depths=(1, 2))
    again = prepare(cfg, DataOptions(run=folder, test_fraction=0.2))[1]  # of one split it is asked for, as it was
    assert again.data.fingerprint == first.data.fingerprint
    fresh = oq.new_run(cfg, "digits", tmp_path / "fresh", "resnet-nano")
    assert fresh.model.depths == now.depths and len(fresh.data.validation) < 300
