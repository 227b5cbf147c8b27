"""Writes the two files with which tests compare the methods: ``python -m tests.helpers.renew``.

Run it after an intended change of an option or of a description.

The list of all options goes to tests/methods/options.json, and the table of ``zolit methods`` to docs/methods/index.md.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import zolit
from tests.helpers.options import defaults
from zolit import methods
from zolit.cli.methods import markdown

ROOT = Path(__file__).parent.parent.parent
OPTIONS = ROOT / "tests" / "methods" / "options.json"
INDEX = ROOT / "docs" / "methods" / "index.md"


def listing() -> str:
    """Returns the options of all methods with their defaults, as JSON."""
    options = {name: defaults(getattr(zolit, name)) for name in methods.__all__}
    return json.dumps(options, indent=2) + "\n"


def index() -> str:
    """Returns the page with the table of all methods renewed."""
    page = INDEX.read_text(encoding="utf-8")
    table = markdown(methods.abouts()) + "\n"
    return re.sub(r"\| method \| paper .*?\n(?=\n)", lambda _: table, page, flags=re.DOTALL)


if __name__ == "__main__":
    OPTIONS.write_text(listing(), encoding="utf-8")
    INDEX.write_text(index(), encoding="utf-8")
