"""One HTML page with its style, its script, its data and its pictures inside: it loads nothing."""

import base64
import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oncequant.files import write_atomically

STYLE = "page.css"
SCRIPTS = ("elements.js", "charts.js", "advice.js", "page.js", "answers.js")  # in this order
INSIDE = ("predictor", "distribution", "compare")  # pictures that the page shows; the others it draws itself


def write_page(data: dict[str, Any], pictures: Mapping[str, bytes], path: Path) -> Path:
    """Write the page of `sections.page_data` and of PNG `pictures` by name. Raises FileError."""
    shown = {name: base64.b64encode(pictures[name]).decode() for name in INSIDE if name in pictures}
    write_atomically(path, page_html(data | {"pictures": shown}).encode())
    return path


def page_style() -> str:
    """The style of the page, which other pages share."""
    return (Path(__file__).parent / STYLE).read_text(encoding="utf-8").rstrip()


def page_html(data: dict[str, Any]) -> str:
    """The page with script and data inside."""
    here = Path(__file__).parent
    text = json.dumps(data, separators=(",", ":"))  # read as JavaScript, which knows NaN
    parts = {
        "title": html.escape(f"oncequant report: {data['run'].get('method', 'run')}"),
        "style": page_style(),
        "script": "\n".join((here / name).read_text(encoding="utf-8") for name in SCRIPTS),
        # a "</script>" in a class name must not end the element: inside strings these three can be written as escapes
        "data": text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e"),
    }
    page = (here / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], page)
