"""The options of a method as the command line sees them.

``python -m tests.helpers.options`` writes the options of all methods to ``tests/methods/options.json``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

import zolit
from zolit import ZerothOrder, methods

STORED = Path(__file__).parent.parent / "methods" / "options.json"


def defaults(method: type[ZerothOrder]) -> dict[str, Any]:
    """Returns the default of each option of a method, also of the options that methods share, by name."""
    parser = ArgumentParser()
    parser.add_class_arguments(method, skip={"model"})
    return dict(parser.get_defaults())


def listing() -> str:
    """Returns the options of all methods with their defaults, as JSON."""
    options = {name: defaults(getattr(zolit, name)) for name in methods.__all__}
    return json.dumps(options, indent=2) + "\n"


if __name__ == "__main__":
    STORED.write_text(listing(), encoding="utf-8")
