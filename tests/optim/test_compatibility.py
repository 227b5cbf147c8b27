"""The combinations of the page run, and impossible ones are refused with a reason."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from tests.conftest import ROOT, Fit
from tests.helpers.tiny import layered
from zolit import UserError, ZerothOrder
from zolit.optim.estimators.per_example import PerExampleSPSA
from zolit.optim.estimators.spsa import SPSA
from zolit.optim.perturbation.diagonal_curvature import DiagonalCurvature
from zolit.optim.perturbation.gaussian import Gaussian
from zolit.optim.perturbation.low_rank.activation_guided import ActivationGuided
from zolit.optim.perturbation.low_rank.low_rank import LowRank
from zolit.optim.probing.in_place import InPlace
from zolit.optim.probing.per_example.prober import PerExampleProber
from zolit.optim.selection.curvature.budget import FixedBudget
from zolit.optim.selection.curvature.parameter_sampling import ParameterSampling

COMBINATIONS = re.findall(
    r"\*\*(.*?)\.\*\*.*?```yaml\n(.*?)```", (ROOT / "docs" / "mixing.md").read_text("utf-8"), re.DOTALL
)


def test_the_page_has_combinations() -> None:
    assert len(COMBINATIONS) >= 6


@pytest.mark.parametrize(("name", "text"), COMBINATIONS, ids=[name for name, _ in COMBINATIONS])
def test_combinations_of_the_page_run(zolit: Fit, tmp_path: Path, name: str, text: str) -> None:
    file = tmp_path / "stages.yaml"
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
    ("estimator: PerExampleSPSA needs the loss of each example", {"estimator": PerExampleSPSA()}),
    ("estimator: PerExampleSPSA", {"estimator": PerExampleSPSA(), "prober": InPlace(), "perturbation": LowRank()}),
    (
        "prober: PerExampleProber gives each example a separate direction",
        {"prober": PerExampleProber(), "estimator": SPSA(), "perturbation": LowRank()},
    ),
    (
        "perturbation: Gaussian has no factors",
        {"prober": PerExampleProber(), "estimator": PerExampleSPSA(), "perturbation": Gaussian()},
    ),
    (
        "selection: ParameterSampling leaves out single parameters",
        {
            "prober": PerExampleProber(),
            "estimator": PerExampleSPSA(),
            "perturbation": LowRank(),
            "selection": ParameterSampling(FixedBudget(0.5)),
        },
    ),
    ("perturbation: ActivationGuided draws from each example", {"perturbation": ActivationGuided()}),
    ("estimator: DiagonalCurvature learns from curvatures, which SPSA", {"perturbation": DiagonalCurvature()}),
]


@pytest.mark.parametrize(("reason", "stages"), REFUSED)
def test_impossible_combinations_are_refused(reason: str, stages: dict[str, Any]) -> None:
    model: nn.Module = layered()
    with pytest.raises(UserError, match=reason) as caught:
        ZerothOrder(model, **stages)
    assert "\n" not in str(caught.value)
