"""The published form of CurvZO's sampling, compared with its steps as formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.helpers.tiny import layered, regression, seen_by, weights_of
from zolit import CurvZO, UserError
from zolit.optim.randomness import fold_in, key_of, uniform

STEPS = 65


def test_steps_equal_the_formulas() -> None:
    model = layered(torch.float64)
    optimizer, closure = CurvZO(model, lr=1e-3, eps=1e-3, seed=3, variant="code"), regression(model)
    names = [name for name, _ in model.named_parameters()]
    n = len(names)
    sens, gema, k = torch.full((n,), 0.01, dtype=torch.float64), 1e-8, 0.4 * n
    for step in range(STEPS):
        p = sens / sens.sum()
        target = max(1, min(math.floor(k), n))
        low, high = 0.0, 1.0 / float(p.max())
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if float((middle * p).clamp(max=1).sum()) < target else (low, middle)
        pi = (high * p).clamp(max=1)
        purpose = fold_in(3, key_of("selection"), step)
        m = torch.tensor([uniform(fold_in(key_of(name), onto=purpose)) < float(pi[i]) for i, name in enumerate(names)])
        theta, seen = weights_of(model), []

        def watched(seen: list[dict[str, Tensor]] = seen) -> Tensor:
            seen.append(seen_by(model))
            return closure()

        optimizer.step(watched)
        found = optimizer.last_step.selection
        if m.any():
            assert found.chosen.tolist() == m.tolist(), step
        torch.testing.assert_close(found.probabilities, pi.clamp(min=1e-8), rtol=1e-9, atol=0)
        m = found.chosen
        g = (optimizer.last_step.losses[0] - optimizer.last_step.losses[1]) / 2e-3
        z = [(seen[0][name] - theta[name]) / 1e-3 for name in names]
        for i, name in enumerate(names):
            torch.testing.assert_close(
                weights_of(model)[name], theta[name] - 1e-3 * g / pi[i] * z[i], rtol=1e-6, atol=1e-9
            )
        gema = 0.9 * gema + 0.1 * abs(g)
        e = torch.tensor([float(part.square().sum()) for part in z]) / pi.clamp(min=1e-8) ** 2 * m
        w = e / e.sum()
        sens = torch.where(m, 0.9 * sens + 0.1 * abs(g) / (gema + 1e-12) * w, sens)
        torch.testing.assert_close(found.scores, sens, rtol=1e-4, atol=1e-8)
        sens = found.scores.clone()
        if (step + 1) % 20 == 0:
            v = sens / sens.mean()
            d_eff = float(v.sqrt().sum() ** 2 / v.sum())
            q = v / v.sum()
            h = -float((q * q.log()).sum()) / math.log(n)
            raw = 0.1 + 0.7 * (0.7 * d_eff / n + 0.3 * (1 - h))
            k = min(max(0.9 * k + 0.1 * raw * n, 0.1 * n), 0.8 * n)
            assert optimizer.selection.state_dict()["count"] == pytest.approx(k, rel=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"budget": 0.4},
        {"score": "literal"},
        {"sampling": "uniform"},
        {"horvitz_thompson": False},
        {"blocks": "parameter"},
    ],
)
def test_options_of_the_paper_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match="variant: code"):
        CurvZO(layered(), variant="code", **options)


def test_out_of_range() -> None:
    for option, value in {"smoothing": 0.0, "budget_min": 0.9, "alpha": 2.0}.items():
        with pytest.raises(UserError, match=option):
            CurvZO(layered(), variant="code", **{option: value})
    with pytest.raises(UserError, match="variant"):
        CurvZO(layered(), variant="published")  # type: ignore[arg-type]
