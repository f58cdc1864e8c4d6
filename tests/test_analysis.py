"""`oncequant analyse`: every method and family, kills, the page and its tables, and bad input."""

import csv
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from commands import call, fails
from test_families import SMALL
from test_methods import CASES, parts

from oncequant.analysis import CSV_FILES, page_of, probes
from oncequant.analysis.factors import WHOLE, Bits, Factor, bits_of, factors_of, prices_of
from oncequant.analysis.probes import Uniform, answered, design_of, first_images, right_of
from oncequant.arch import FLOAT_BITS
from oncequant.cost import bitops
from oncequant.measure import Judge
from oncequant.methods import METHODS
from oncequant.models import space_of
from oncequant.records import Probe, read_records
from oncequant.supernet_file import load_supernet

FEW = ("--evaluations", "20", "--images", "100")


class Interrupted(Exception):
    pass


@pytest.fixture(scope="module", autouse=True)
def few_draws():
    """Intervals of fewer draws, for speed; tests/test_analysis_statistics.py has them as they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("oncequant.analysis.statistics.DRAWS", 200)
        yield


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def trained(request, tmp_path_factory):
    """(method, run folder, how to open it) of a method with all its stages, and networks that a search measured."""
    cfg, options, run = parts(*request.param, tmp_path_factory.mktemp("-".join(request.param)))
    METHODS[request.param[0]].train(cfg, run)
    METHODS[request.param[0]].choose(cfg, options, run)
    return request.param[0], run.folder, lambda: (cfg, run)


def analysed(folder, opened, monkeypatch, *words):
    """The page of an analysis of a folder whose images are those in memory."""
    monkeypatch.setattr("oncequant.analysis.open_run", lambda *_, **__: opened())
    call(monkeypatch, "analyse", folder, *FEW, *words)
    return (folder / "analysis" / "index.html").read_text()


def test_every_method_and_family_is_analysed(trained, monkeypatch):
    method, folder, opened = trained
    page = analysed(folder, opened, monkeypatch)
    check_page(page)
    design = design_of(folder, 20)
    assert bool(design.uniforms) == (method != "dnas")
    found = {path.stem for path in (folder / "analysis").glob("*.csv")}
    assert found <= set(CSV_FILES) and ("bits" in found or "are too few. Give --evaluations" in page)
    if design.uniforms:
        assert {"accuracy"} <= found and "What fewer bits cost" in page
        assert ("effects" in found) == (len(design.archs) >= 20)
        assert "The reference is not float" in page
        rows = read(folder, "accuracy")
        assert [int(row["bits"]) for row in rows] == [uniform.bits for uniform in design.uniforms]
    for name in found:
        for row in read(folder, name):
            if row.get("low"):
                assert float(row["low"]) <= float(row["high"]) and row["verdict"]
    if design.uniforms:
        answered(folder, "run", design, 100, lambda: pytest.fail("measured again"))


def test_networks_are_measured_as_searches_do(trained):
    method, folder, opened = trained
    design = design_of(folder, 20)
    if not design.uniforms:
        return
    cfg, run = opened()
    answered(folder, "run", design, 100, opened)
    judge = Judge(run.data, cfg.calibration(run.data))
    for probe in read_records(folder / "probes.jsonl", Probe)[::9]:
        net = load_supernet(folder, probe.stage)
        if set(probe.arch) <= set(net.space.free):
            answers = judge.on(net, net.space.complete(probe.arch), first_images(run.data, probe.images))
            assert answers.accuracy.top1 == pytest.approx(right_of(probe, probe.images).mean())


def test_architectures_are_the_same_at_each_bit_width_and_policies_mix(trained):
    design = design_of(trained[1], 20)
    if not design.uniforms:
        return
    for uniform in design.uniforms:
        for arch in design.archs:
            whole = design.arch_at(arch, uniform)
            assert all(whole[name] == value for name, value in arch.items())
            layers = design.spaces[uniform.stage].layers(whole)
            edge = {"stem", "classifier", "se"}
            assert {s.weight_bits for s in layers.values() if s.role not in edge and s.present} <= {uniform.bits, 8}
    more = design_of(trained[1], 40)
    assert more.archs[: len(design.archs)] == design.archs and more.policies[:20] == design.policies
    keys, bits = bits_of(design.policies, design.policy_space, "role")
    assert (np.ptp(bits, axis=0) > 0).all() and {key.what for key in keys} == {"weights", "inputs"}


def test_a_killed_analysis_goes_on(trained, monkeypatch, tmp_path):
    method, folder, opened = trained
    design = design_of(folder, 20)
    if not design.uniforms or len(design.archs) < 20:
        return
    whole = answered(folder, "run", design, 100, opened)
    again = tmp_path / "run"
    shutil.copytree(folder, again)
    (again / "probes.jsonl").unlink()
    append, seen = probes.append_record, []

    def killed(path, record):
        append(path, record)
        seen.append(record)
        if len(seen) % 30 == 0:
            raise Interrupted

    monkeypatch.setattr(probes, "append_record", killed)
    kills = 0
    while True:
        try:
            found = answered(again, "run", design, 100, opened)
            break
        except Interrupted:
            kills += 1
    assert kills >= 2 and len(seen) == len(read_records(again / "probes.jsonl", Probe))
    assert len({(probe.stage, probe.arch) for probe in seen}) == len(seen), "measured twice"
    for uniform in design.uniforms:
        assert (found.uniform[uniform] == whole.uniform[uniform]).all()
    assert (found.policies == whole.policies).all()
    fewer = answered(again, "run", design, 60, lambda: pytest.fail("fewer images are the first ones of more"))
    assert (fewer.policies == whole.policies[:, :60]).all()


# -- factors


def test_factors_are_means_over_the_blocks_that_are_there(digits_run):
    space = load_supernet(digits_run, "4bit").space
    design = design_of(digits_run, 30)
    factors, values = factors_of(design.archs, space)
    by_factor = dict(zip(factors, values.T))
    for row, arch in enumerate(design.archs):
        ratios = [
            value for name, value in arch.items()
            if name.endswith("expand_ratio") and arch[name.split(".block")[0] + ".depth"] >= int(name[12])
        ]  # fmt: skip
        depths = [value for name, value in arch.items() if name.endswith(".depth")]
        assert by_factor[Factor("expand_ratio", WHOLE)][row] == pytest.approx(np.mean(ratios))
        assert by_factor[Factor("depth", WHOLE)][row] == pytest.approx(np.mean(depths))
        assert by_factor[Factor("depth", "stage2")][row] == arch["stage2.depth"]
    assert Factor("kernel_size", WHOLE) not in by_factor  # all are 3


def test_prices_are_what_a_bit_more_adds_to_bitops(digits_run):
    design = design_of(digits_run, 20)
    keys, bits = bits_of(design.policies, design.policy_space, "role")
    prices = prices_of(design.policies, design.policy_space, keys)
    key = Bits("role", "conv", "weights")
    arch = design.policies[0]
    layers = design.policy_space.layers(arch)
    wider = {
        name: type(spec)(**{**vars(spec), "weight_bits": spec.weight_bits + (spec.role == "conv")})
        for name, spec in layers.items()
    }
    assert prices[0, keys.index(key)] == pytest.approx(bitops(wider) / bitops(layers) - 1)


def test_float_is_the_reference_where_all_its_subnets_are_trained(digits_run):
    """`digits_run` is trained with --float-sandwich."""
    design = design_of(digits_run, 20)
    assert design.float_is_trained and design.reference == Uniform("float", FLOAT_BITS)
    assert [uniform.bits for uniform in design.uniforms] == [32, 4, 2]
    assert design.lowers and design.policy_stage == "4bit"
    assert {design.policies[0][n] for n in design.policies[0] if n.endswith("block1.conv1.weight_bits")} <= {3, 4}


# -- page


class Page(HTMLParser):
    """What a reader without eyes would miss."""

    def __init__(self):
        super().__init__()
        self.ids, self.targets, self.levels, self.problems = [], [], [], []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if "id" in values:
            self.ids.append(values["id"])
        if tag == "a":
            self.targets.append(values["href"].removeprefix("#"))
        if re.fullmatch("h[1-6]", tag):
            self.levels.append(int(tag[1]))
        if tag == "svg" and not (values.get("aria-label") or values.get("aria-hidden")):
            self.problems.append("a picture without a text")
        if tag == "th" and "scope" not in values:
            self.problems.append("a header of nothing")
        if tag in ("script", "link", "img"):
            self.problems.append(f"{tag} loads something")


def check_page(text):
    page = Page()
    page.feed(text)
    assert not page.problems and len(set(page.ids)) == len(page.ids) and set(page.targets) <= set(page.ids)
    assert page.levels[0] == 1 and all(after <= before + 1 for before, after in zip(page.levels, page.levels[1:]))
    assert "nan" not in re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL).lower().split()


def read(folder, name):
    return list(csv.DictReader((folder / "analysis" / f"{name}.csv").open()))


def test_the_page_answers_the_questions_of_users(analysed_run):
    page = (analysed_run / "analysis" / "index.html").read_text()
    check_page(page)
    assert "my &lt;run&gt;" in page and "my <run>" not in page
    for text in ("Do few bits pay at my budget?", "Which layers should keep more bits?", "The paper says",
                 "shallower networks quantize better", "The reference is float"):  # fmt: skip
        assert text in page, text
    assert {path.stem for path in (analysed_run / "analysis").glob("*.csv")} == set(CSV_FILES)
    effects = read(analysed_run, "effects")
    assert {row["at"] for row in effects} == {"equal compute", "equal accuracy"}
    assert {row["run"] for row in effects} == {"my <run>"} and {row["bits"] for row in effects} == {"4", "2"}


def test_several_runs_are_on_one_page(analysed_run, tmp_path, monkeypatch, capsys):
    for name in ("one", "two"):
        shutil.copytree(analysed_run, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    call(monkeypatch, "analyse", "one", "two", *FEW, "--out", "pages/mine.html")
    said = capsys.readouterr().out
    assert "pages/mine.html" in said and "analyse one:" not in said, "measured again"
    check_page((tmp_path / "pages" / "mine.html").read_text())
    rows = list(csv.DictReader((tmp_path / "pages" / "budgets.csv").open()))
    assert {row["run"] for row in rows} == {"one", "two"}
    own = [[{**row, "run": ""} for row in rows if row["run"] == name] for name in ("one", "two")]
    assert own[0] == own[1] == [{**row, "run": ""} for row in read(analysed_run, "budgets")] != []


def test_pages_have_a_place_of_their_own(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert page_of(None, [one]) == one / "analysis" / "index.html"
    assert str(page_of(None, [one, two])) == "analysis/index.html"
    assert page_of(tmp_path / "x", [one, two]) == tmp_path / "x" / "index.html"


# -- bad input


def test_what_cannot_be_analysed_is_one_line(digits_run, tmp_path, monkeypatch, capsys):
    def says(*words, status=1):
        return fails(monkeypatch, capsys, "analyse", *words, status=status)

    assert "is not a run folder: it has no run.json" in says(tmp_path)
    assert "name every run once" in says(digits_run, digits_run)
    assert "RUN is missing" in says(status=2)
    assert "--evaluations 5: use 20 to 100,000" in says(digits_run, "--evaluations", "5")
    assert "--images 5: use 100 to 10,000,000" in says(digits_run, "--images", "5")
    started = tmp_path / "started"
    shutil.copytree(digits_run, started, ignore=shutil.ignore_patterns("*bit.safetensors", "measurements*", "family*"))
    said = says(started)
    assert "no quantized stage is trained yet; trained are float of float, 4bit, 2bit" in said
    assert "needs a folder of its own" in says(digits_run, "--out", digits_run)
    file = tmp_path / "file"
    file.write_text("")
    assert "is a file: give a folder" in says(digits_run, "--out", file)
    assert not (started / "probes.jsonl").exists()


def test_probes_of_other_images_are_refused():
    with pytest.raises(ValueError, match="right must be 4 hexadecimal digits, for 10 images"):
        Probe("4bit", {}, 10, "ff")
    right = right_of(Probe("4bit", {}, 10, "ffc0"), 9)
    assert right.sum() == 9 and right.dtype == bool


def test_spaces_without_choices_have_no_factors():
    space = space_of(SMALL["own"])
    factors, values = factors_of([space.largest()], space)
    assert factors == [] and values.shape == (1, 0)
