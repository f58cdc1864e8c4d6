"""Pages in a real browser: Debian's chromium, driven by selenium; axe-core judges them.

The pictures in docs/, of the report of `oncequant run` and of a page of several runs:
python tests/browser.py runs/digits/report/index.html docs
python tests/browser.py runs/five/page/index.html docs/comparison.png
"""

import io
import shutil
import sys
import tempfile
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path

PROGRAMS = ("chromium", "chromedriver")
HOW_TO_INSTALL = "no chromium: apt-get install chromium chromium-driver, or the browser and the driver of your system"
FLAGS = (
    "headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
    "disable-component-update", "disable-sync",
)  # fmt: skip
WIDTHS = (400, 1000, 1600)  # telephone, small laptop, desk
CHECKS = Path(__file__).with_name("page_checks.js")
AXE_RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"], "resultTypes": ["violations"]}


def can_start() -> bool:
    """Whether browser, driver and selenium are there."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return False
    return all(shutil.which(program) for program in PROGRAMS)


@contextmanager
def started(profile):
    """A browser without a window, its profile in the folder `profile`."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location, driver = map(shutil.which, PROGRAMS)
    for flag in (*FLAGS, f"user-data-dir={profile}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, Service(driver))
    try:
        yield browser
    finally:
        browser.quit()


def look(browser, width=1000, dark=False, height=900):
    """Set the window to so many pixels, light or dark, and wait until the page is drawn anew."""
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_async_script(
        "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done)));"
    )


def complaints(browser) -> list[str]:
    """What the page has written on the console since the last call: errors, and warnings of the browser."""
    return [line["message"] for line in browser.get_log("browser") if line["level"] in ("SEVERE", "WARNING")]


def cut_off(browser) -> list[str]:
    """Elements that a reader cannot see or reach, each with the reason."""
    return _checked(browser, "cutOff")


def scrolling(browser) -> list[str]:
    """Labels of the tables and pictures that are wider than their place, so that one must scroll to see all of them."""
    return _checked(browser, "scrolling")


def faint(browser) -> list[str]:
    """Texts in drawings with a contrast below 4.5, and marks below 3: axe-core does not look into drawings."""
    return _checked(browser, "faint")


def _checked(browser, function) -> list[str]:
    return browser.execute_script(f"{CHECKS.read_text()}\nreturn {function}();")


@cache
def _axe() -> str:
    return files("axe_core_python").joinpath("axe.min.js").read_text()


def violations(browser, **rules) -> list[str]:
    """What axe-core objects to: its rule, and the elements."""
    if not browser.execute_script("return Boolean(window.axe)"):
        browser.execute_script(_axe())
    found = browser.execute_async_script(
        "const [rules, done] = arguments; axe.run(document, rules).then(done, (error) => done({error: `${error}`}));",
        AXE_RULES | rules,
    )
    if "violations" not in found:
        raise RuntimeError(f"axe-core failed: {found}")
    return [
        f"{rule['id']}: {rule['help']}: {[node['html'][:160] for node in rule['nodes']]}"
        for rule in found["violations"]
    ]


def picture(browser, selector) -> bytes:
    """An element as PNG, in few colours so that it is small."""
    from PIL import Image

    shot = Image.open(io.BytesIO(browser.find_element("css selector", selector).screenshot_as_png)).convert("RGB")
    small = io.BytesIO()
    shot.quantize(128, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()


def write_pictures(page: Path, out: Path) -> None:
    """The first sections of a report into the folder `out`: the advice for a budget of 8 kB, and the fronts. If `out`
    is a file, only the fronts, over packed weights."""
    from selenium.webdriver.support.ui import Select

    with tempfile.TemporaryDirectory() as profile, started(profile) as browser:
        browser.get(page.resolve().as_uri())
        look(browser, 1000, height=2400)
        if out.suffix == ".png":
            Select(browser.find_element("id", "cost")).select_by_visible_text("Packed weights")
            out.write_bytes(picture(browser, "#pareto"))
            return
        field = browser.find_element("id", "budget")
        field.clear()
        field.send_keys("8 kB")
        for name in ("advice", "pareto"):
            (out / f"report_{name}.png").write_bytes(picture(browser, f"#{name}"))


if __name__ == "__main__":
    write_pictures(*map(Path, sys.argv[1:]))
