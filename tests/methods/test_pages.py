"""A method's description, its page and its steps agree on the number of forwards."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import zolit
from tests.conftest import ROOT
from tests.helpers.battery import METHODS, made, model_for
from tests.helpers.tiny import DEVICE, layered, regression, same, seen_by, weights_of
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
    model = model_for(name)
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


COUNTS: list[tuple[str, dict[str, Any], str]] = [
    *[("MeZO", {"directions": q}, "2q") for q in (1, 2, 3)],
    *[("CurvZO", {"directions": q, "blocks": blocks}, "2q") for q in (1, 3) for blocks in ("tensor", "parameter")],
    *[("BSZO", {"directions": k, "queries": m}, "k + 1") for k in (1, 2, 3) for m in (k, k + 1, k + 3)],
    *[("BSZO", {"directions": 2, "queries": m, "variant": "code"}, "k + 1") for m in (2, 3, 5)],
    *[("BSZO", {"directions": 2, "queries": m, "adaptive": True}, "m + 1") for m in (2, 3, 4, 5, 7)],
    *[("BSZO", {"directions": 1, "queries": 3, "adaptive": True, "variant": "code"}, "m + 1")],
    *[(method, {"directions": count}, "M + 2") for method in ("MeZOGV", "MeZOGreedy") for count in (2, 4, 5)],
    *[("FZOO", {"directions": count}, "N + 1") for count in (2, 3, 8)],
    *[("FZOO", {"directions": count, "variant": "code"}, "N/2 + 1") for count in (2, 4, 8)],
    ("AGZO", {}, "2"),
    ("AGZO", {"two_sided": True}, "3"),
    ("HiZOO", {}, "3"),
    ("HiZFO", {}, "3"),
    ("FirstOrder", {}, "1"),
    *[(method, {}, "2") for method in ("LOZO", "SubZero", "SparseMeZO", "SensZOQ", "ZOAct", "DominantLayer")],
]
"""A method, its options, and its number of forwards as ``zolit methods`` and the page say it."""

SYMBOLS = {"q": "directions", "k": "directions", "M": "directions", "N": "directions", "m": "queries"}
WIDE = {"prior": 5.0, "noise": 1.0}


@pytest.mark.parametrize(("method", "options", "formula"), COUNTS)
@pytest.mark.parametrize("probing", ["streamed", "joint", "in_place"])
def test_forwards_are_as_many_as_the_formula_says(
    method: str, options: dict[str, Any], formula: str, probing: str
) -> None:
    """In the third step. θ is evaluated once a step, whatever the number of measurements that need L(θ)."""
    made_by = getattr(zolit, method)
    assert re.search(rf"(^|\s){re.escape(formula)}($|;|,)", made_by.about.forwards)
    assert formula.replace(" ", "") in page_of(made_by).replace(" ", "")
    model = layered()
    probed = {} if method == "FirstOrder" else {"probing": probing}
    optimizer = made_by(model, lr=1e-6, **options, **(WIDE if method == "BSZO" else {}), **probed)
    inputs, calls, at_theta = torch.linspace(-1.0, 1.0, 24, device=DEVICE).view(6, 4), 0, 0
    theta = weights_of(model)

    def closure() -> torch.Tensor:
        nonlocal calls, at_theta
        calls += 1
        at_theta += probing != "joint" and same(seen_by(model), theta)
        copies = inputs.repeat(optimizer.batch_repeats, 1)
        losses: torch.Tensor = (model(copies) - copies.sum(1)).square()
        return losses

    for _ in range(3):
        theta, calls, at_theta = weights_of(model), 0, 0
        optimizer.step(closure, repeats_batch=True)
    symbols = {symbol: options.get(option, 0) for symbol, option in SYMBOLS.items()}
    expected = eval(re.sub(r"(\d)([a-zA-Z])", r"\1*\2", formula), symbols)  # a formula of this file
    assert optimizer.last_step.forward_passes == len(optimizer.last_step.losses) == expected
    if probing != "joint":
        assert calls == expected
    assert at_theta <= 1
