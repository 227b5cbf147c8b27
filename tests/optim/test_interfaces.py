"""The interfaces of the step stay small, and say when each verb is called."""

from __future__ import annotations

import inspect

import pytest

from zolit.optim import (
    BasePoint,
    Collectives,
    Estimator,
    FactoredPerturbation,
    Perturbation,
    Prober,
    Selection,
    Stage,
    Update,
)

INTERFACES = [Stage, Selection, Perturbation, FactoredPerturbation, Prober, Estimator, Update, Collectives, BasePoint]


@pytest.mark.parametrize("interface", INTERFACES, ids=lambda interface: interface.__name__)
def test_an_interface_has_at_most_eight_verbs_that_say_when_they_are_called(interface: type) -> None:
    verbs = {name: verb for name, verb in vars(interface).items() if inspect.isfunction(verb) and name[0] != "_"}
    assert 1 <= len(verbs) <= 8
    for name, verb in verbs.items():
        text = inspect.getdoc(verb) or ""
        assert "Called" in text or "see ``Stage." in text, f"{name}: {text}"
