"""A method's description, its page and its steps agree on the number of forwards."""

from __future__ import annotations

import re

import pytest

import zolit
from tests.conftest import ROOT
from tests.helpers.battery import METHODS, made
from tests.helpers.tiny import layered, regression
from zolit import ZerothOrder

DEFAULTS = {
    name: getattr(zolit, method) for name, (method, options) in METHODS.items() if not options or name == "dizo"
}


def page_of(method: type[ZerothOrder]) -> str:
    """Returns the text of a method's page."""
    return (ROOT / "docs" / "methods" / method.about.page).read_text(encoding="utf-8")


NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.mark.parametrize("name", DEFAULTS)
def test_forwards_are_as_many_as_the_page_says(name: str) -> None:
    model = layered()
    optimizer, closure = made(name, model), regression(model)
    about = DEFAULTS[name].about
    for _ in range(9):
        optimizer.step(closure)
    before = optimizer.last_step.total_backward_passes
    optimizer.step(closure)
    assert optimizer.last_step.forward_passes == about.forwards_by_default
    assert optimizer.last_step.total_backward_passes - before == about.backwards
    page, number = " ".join(page_of(DEFAULTS[name]).split()), about.forwards_by_default
    row = re.search(r"\| Forwards a step \| (.*?) \|", page)
    said = row[1] if row else " ".join(re.findall(r"\w+(?= forwards a step)", page))
    assert re.search(rf"\b({number}|{NUMBERS[number]})\b", said)
