"""The mixes of the page run, and impossible ones are refused with a reason."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from tests.conftest import ROOT, Fit
from tests.tiny import layered
from zolit import UserError, ZerothOrder
from zolit.estimators import SPSA, PerExampleSPSA
from zolit.perturbation import ActivationGuided, Gaussian, LowRank
from zolit.probing import Individual, InPlace
from zolit.selection import FixedBudget, PerParameter

MIXES = re.findall(r"\*\*(.*?)\.\*\*.*?```yaml\n(.*?)```", (ROOT / "docs" / "mixing.md").read_text("utf-8"), re.DOTALL)


@pytest.mark.parametrize(("name", "text"), MIXES, ids=[name for name, _ in MIXES])
def test_mixes_of_the_page_run(zolit: Fit, tmp_path: Path, name: str, text: str) -> None:
    file = tmp_path / "mix.yaml"
    file.write_text(text)
    cli = zolit(
        "fit", f"--config={file}", "--trainer.callbacks=[]", "--trainer.max_steps=2", "--trainer.limit_val_batches=1"
    )
    report = cli.model.zo.last_step
    assert report is not None
    assert cli.trainer.global_step == 2
    assert not report.skipped
    assert any(report.coefficients)


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("estimator: PerExampleSPSA wants a loss for each example", {"estimator": PerExampleSPSA()}),
    ("estimator: PerExampleSPSA", {"estimator": PerExampleSPSA(), "prober": InPlace(), "perturbation": LowRank()}),
    (
        "prober: Individual gives every example",
        {"prober": Individual(), "estimator": SPSA(), "perturbation": LowRank()},
    ),
    (
        "perturbation: Gaussian has no factors",
        {"prober": Individual(), "estimator": PerExampleSPSA(), "perturbation": Gaussian()},
    ),
    (
        "selection: PerParameter leaves single parameters out",
        {
            "prober": Individual(),
            "estimator": PerExampleSPSA(),
            "perturbation": LowRank(),
            "selection": PerParameter(FixedBudget(0.5)),
        },
    ),
    ("perturbation: ActivationGuided draws from each example", {"perturbation": ActivationGuided()}),
]


@pytest.mark.parametrize(("reason", "rooms"), REFUSED)
def test_impossible_mixes_are_refused(reason: str, rooms: dict[str, Any]) -> None:
    model: nn.Module = layered()
    with pytest.raises(UserError, match=reason) as caught:
        ZerothOrder(model, **rooms)
    assert "\n" not in str(caught.value)
