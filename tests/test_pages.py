"""Report, comparison and analysis in a browser: all can be seen, reached, read, used, at any width, light and dark."""

import json
from dataclasses import asdict, replace
from itertools import combinations

import browser as window
import numpy as np
import pytest
from test_report import make_run_folder
from test_report_answers import write_synthetic

from oncequant.compare import Deployment, Effort, differences, hypervolumes, totals
from oncequant.models import space_of
from oncequant.models.resnet import ResNetConfig
from oncequant.records import Distribution
from oncequant.report import write_comparison
from oncequant.report.contents import read_contents
from oncequant.report.page import write_page
from oncequant.report.pictures import draw_pictures
from oncequant.report.sections import page_data

pytestmark = pytest.mark.skipif(not window.can_start(), reason=window.HOW_TO_INSTALL)
PAGES = ("trained", "everything", "comparison", "analysis")


def add_everything(folder):
    """What only some runs have: every format of files, a predictor, other ways, answers."""
    exports = json.loads((folder / "exports.json").read_text())
    for row in exports:
        row |= dict(c_constant_bytes=41210, c_arena_bytes=20480, cortex_m4_flash_bytes=61999, cortex_m4_stack_bytes=912)
        row |= dict(cortex_m4_instructions=12_345_678, top1_qonnx=0.9412, qonnx_bytes=401_200, qonnx_equal_images=358)
    (folder / "exports.json").write_text(json.dumps(exports))
    points = [dict(searcher=name, predicted=0.8, measured=0.79) for name in ("random", "front")]
    found = dict(kendall_tau=0.71, rmse=0.012, points=points, pairs=60, held_out=2)
    (folder / "predictor.json").write_text(json.dumps(found | dict(hypervolume=dict(predicted=0.41, uniform=0.39))))
    ways = ("supernet", "nas-then-quantize", "search-then-retrain", "uniform", "hand-made", "hand-made-whole")
    rows = [
        Deployment(way, cost, cost, cost / 8, 0.8, 0.7 + cost / 1e7, 1_640_000, 1234.5, {"width": 1})
        for way in ways
        for cost in (1e6, 2e6)
    ]
    about = dict(bits=4, totals=totals(rows, dict.fromkeys(ways, Effort(12_000_000, 3456.0))))
    about |= dict(hypervolumes=hypervolumes(rows), against_supernet=differences(rows))
    (folder / "compare.json").write_text(json.dumps(about | dict(deployments=[asdict(row) for row in rows])))
    write_synthetic(folder, 10, 300)


@pytest.fixture(scope="session")
def pages(digits_run, analysed_run, tmp_path_factory):
    """The pages by name."""
    root = tmp_path_factory.mktemp("pages")
    folder = make_run_folder(root / "synthetic")
    add_everything(folder)
    space = space_of(ResNetConfig(stage_blocks=(1, 1, 1), stage_widths=(8, 12, 16), resolutions=(8,)))
    names = [name for name in space.free if name.endswith(".precision")]
    shares = [np.full(len(space.choices[name]), 1 / len(space.choices[name])).tolist() for name in names]
    drawn = [Distribution(step, 20, dict(zip(names, shares))) for step in (0, 10, 20)]
    contents = replace(read_contents(folder), distribution=drawn, drawn_from=space)
    data = page_data(contents)
    pictures = draw_pictures(data, contents.layer_names, root / "everything")
    return {
        "trained": digits_run / "report" / "index.html",
        "everything": write_page(data, pictures, root / "everything" / "index.html"),
        "comparison": write_comparison([digits_run, folder], root / "comparison"),
        "analysis": analysed_run / "analysis" / "index.html",
    }


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    with window.started(tmp_path_factory.mktemp("chromium")) as one:
        yield one


def open_page(browser, path, width=1000):
    window.look(browser, width)
    browser.get(path.as_uri())
    assert window.complaints(browser) == []


@pytest.mark.parametrize("page", PAGES)
def test_everything_can_be_seen_and_read(page, pages, browser):
    open_page(browser, pages[page])
    for width in window.WIDTHS:
        for dark in (False, True):
            window.look(browser, width, dark)
            assert window.cut_off(browser) == [], (width, dark)
            assert window.faint(browser) == [], (width, dark)
        assert width < 1000 or window.scrolling(browser) == [], width
    assert window.complaints(browser) == []


@pytest.mark.parametrize("page", PAGES)
def test_axe_objects_to_nothing(page, pages, browser):
    open_page(browser, pages[page])
    for width, dark in ((400, False), (1000, True)):
        window.look(browser, width, dark)
        assert window.violations(browser) == [], (width, dark)


# -- how a reader uses them


def keys(browser, *pressed):
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser).send_keys(*pressed).perform()


def point_at(browser, name, click=False):
    """Move the pointer onto the mark of a chosen network in the picture; what the tip says then."""
    from selenium.webdriver.common.action_chains import ActionChains

    mark = browser.find_element("css selector", f'#pareto-chart path[data-name="{name}"]')
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", mark)
    moves = ActionChains(browser).move_to_element(mark)
    (moves.click() if click else moves).perform()
    return browser.find_element("css selector", ".tip").text


def text_of(browser, selector):
    return browser.find_element("css selector", selector).text


def test_the_mouse_shows_and_selects_networks(pages, browser):
    open_page(browser, pages["everything"])
    assert text_of(browser, "#panel h3") == "4bit-S"
    for width in (1600, 400):
        window.look(browser, width)
        tip = point_at(browser, "2bit-L").splitlines()
        assert tip[0] == "2bit-L" and tip[1].startswith("Validation top-1: ") and "Packed weights: 58.1 kB" in tip
        assert window.cut_off(browser) == [], width  # the tip, too
    point_at(browser, "2bit-L", click=True)
    assert text_of(browser, "#panel h3") == "2bit-L" and browser.current_url.endswith("#select=2bit-L")
    for row in browser.find_elements("css selector", "#family tbody tr")[:2]:
        button = row.find_element("css selector", "button")
        name = button.text
        button.click()
        assert text_of(browser, "#panel h3") == name
    assert window.complaints(browser) == []


def test_the_keyboard_reaches_all_and_walks_along_fronts(pages, browser):
    from selenium.webdriver.common.keys import Keys

    open_page(browser, pages["trained"])
    at = (
        "const one = document.activeElement;"
        "return one === document.body ? null"
        " : [one.id || one.ariaLabel || one.localName, getComputedStyle(one).outlineStyle]"
    )
    reached = {}
    for _ in range(300):
        keys(browser, Keys.TAB)
        if (found := browser.execute_script(at)) is None:
            break
        name, outline = found
        reached[name.partition(" against")[0]] = outline
    else:
        raise AssertionError("the keyboard never comes to the end of the page")
    assert {"cost", "network", "Confusion matrix", "input", "Validation top-1", "button", "summary"} <= set(reached)
    assert "none" not in reached.values(), reached  # one sees where one is
    browser.execute_script("document.querySelector('#pareto-chart > svg').focus()")
    seen = []
    for key in (Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT):
        keys(browser, key)
        seen.append(text_of(browser, "#panel h3"))
    assert len(set(seen)) == 3 and seen[1] == seen[3] and all("measurement" in title for title in seen)


def order(browser, section, column):
    rows = browser.find_elements("css selector", f"#{section} tbody tr")
    return [row.find_elements("css selector", "th, td")[column].text for row in rows]


@pytest.mark.parametrize("how", ["mouse", "keyboard"])
def test_tables_are_sorted_by_a_title(how, pages, browser):
    from selenium.webdriver.common.keys import Keys

    open_page(browser, pages["everything"])
    heads = browser.find_elements("css selector", "#family thead th")
    column = [head.text for head in heads].index("Packed weights")
    bytes_of = {text: float(text.split()[0]) for text in order(browser, "family", column)}
    button = heads[column].find_element("css selector", "button")
    for sign, direction in ((1, "ascending"), (-1, "descending")):
        if how == "mouse":
            button.click()
        else:
            browser.execute_script("arguments[0].focus()", button)
            keys(browser, Keys.ENTER)
        shown = order(browser, "family", column)
        assert shown == sorted(shown, key=lambda text: sign * bytes_of[text]) and len(shown) == 10
        assert heads[column].get_attribute("aria-sort") == direction


def test_axes_can_be_switched_and_series_hidden(pages, browser):
    from selenium.webdriver.support.ui import Select

    open_page(browser, pages["comparison"])
    choice = Select(browser.find_element("id", "cost"))
    titles = [option.text for option in choice.options]
    assert {"BitOPs", "Packed weights", "RAM in C"} <= set(titles)
    for title in titles:
        choice.select_by_visible_text(title)
        drawn = browser.find_element("css selector", "#pareto-chart > svg")
        assert f"Validation top-1 against {title}" in drawn.get_attribute("aria-label") and title in drawn.text
        assert window.cut_off(browser) == [], title
    marked, named = (f"#pareto-chart {element}" for element in ("path[data-name]", "text.name"))
    count = len(browser.find_elements("css selector", marked))
    browser.find_element("css selector", "#legend input").click()
    assert 0 < len(browser.find_elements("css selector", marked)) < count
    places = [text.rect for text in browser.find_elements("css selector", named)]
    assert len(places) > 3
    for one, other in combinations(places, 2):
        shared = min(p["x"] + p["width"] for p in (one, other)) - max(p["x"] for p in (one, other))
        assert shared < 6 or abs(one["y"] - other["y"]) > 12  # names do not cover each other


def test_right_and_wrong_are_of_the_network_that_is_asked_for(pages, browser):
    from selenium.webdriver.support.ui import Select

    open_page(browser, pages["everything"])
    before = text_of(browser, "#answers-facts")
    Select(browser.find_element("id", "network")).select_by_visible_text("2bit-M")
    assert text_of(browser, "#answers-facts") != before
    assert "2bit-M" in browser.find_element("css selector", "#confusion-chart > svg").get_attribute("aria-label")


def test_a_budget_is_answered_on_the_page_alone(pages, browser):
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select

    open_page(browser, pages["everything"])
    words = text_of(browser, "#advice-words")
    assert "of packed weights" in words
    assert "of 360 test images are right (" in words and "2bit-S" in words
    field = browser.find_element("id", "budget")
    for text, rows in (("64 kB", {"4 bit", "3 bit", "2 bit"}), ("20k", {"2 bit"}), ("1", set())):
        field.clear()
        field.send_keys(text)
        found = {
            row for row, name in zip(order(browser, "advice", 0), order(browser, "advice", 1)) if "none" not in name
        }
        assert found >= rows and (found or not rows) and "float" not in found, text
    assert "Nothing that was measured" in text_of(browser, "#budget-table")
    field.clear()
    field.send_keys("much")
    assert "Write a number" in text_of(browser, "#budget-table") and field.get_attribute("aria-invalid") == "true"
    slider = browser.find_element("id", "budget-slider")
    slider.send_keys(Keys.END)
    assert {"float", "2 bit"} <= set(order(browser, "advice", 0)) and "float-max" in order(browser, "advice", 1)
    Select(browser.find_element("id", "budget-cost")).select_by_visible_text("RAM in C")
    assert "of RAM in C" in text_of(browser, "#advice-words")
    assert Select(browser.find_element("id", "cost")).first_selected_option.text == "RAM in C"
    assert window.complaints(browser) == []
