"""Corrections follow the Jacobians of layers whose weights have moved, from few of the tokens that count."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.families import build
from tests.helpers.feedback import text_loss, word_loss
from tests.helpers.tiny import same, weights_of
from tests.optim.feedback.test_jacobians import LAYERS, WIDTH, LinearStream, close, padded, stream
from zolit import DirectFeedback
from zolit.optim.base_point import BasePoint, NotFinite
from zolit.optim.collectives import Collectives
from zolit.optim.feedback.jacobians import Jacobians
from zolit.optim.feedback.refresh import TOKENS, Correction
from zolit.optim.feedback.stream import ResidualStream
from zolit.optim.randomness import Step


def test_a_correction_is_a_share_of_the_ridge_solution() -> None:
    """It is μ times what least squares with a penalty on the change would add to A, whatever the number of tokens."""
    for tokens in (3, 40):
        torch.manual_seed(tokens)
        u, w, jacobian = torch.randn(tokens, WIDTH), torch.randn(tokens, WIDTH), torch.randn(WIDTH, WIDTH)
        correction = Correction(torch.float32)
        correction.add(u[:2], w[:2], torch.ones(2, dtype=torch.bool))
        correction.add(u[2:], w[2:], torch.ones(tokens - 2, dtype=torch.bool))
        penalty = 0.1 * u.square().sum(1).mean() * torch.eye(WIDTH)
        expected = 0.15 * (w - u @ jacobian.t()).t() @ u @ (u.t() @ u + penalty).inverse()
        torch.testing.assert_close(correction.of(jacobian), expected)


def moved() -> tuple[LinearStream, Jacobians]:
    """Returns a model whose weights have moved since its Jacobians were learned."""
    model = stream()
    jacobians = Jacobians(ResidualStream(model).layers, 0, refresh=2)
    jacobians.load({f"layers.{i}": layer.part.weight.detach().clone() for i, layer in enumerate(model.layers)})
    with torch.no_grad():
        for layer in model.layers:
            layer.part.weight.add_(torch.randn(WIDTH, WIDTH) * 0.3)
    return model, jacobians


def corrected(
    model: nn.Module,
    jacobians: Jacobians,
    closure: Callable[[], Tensor],
    steps: int = 40,
    collectives: Collectives | None = None,
) -> None:
    for index in range(steps):
        step = Step(0, 2 * index)
        assert jacobians.is_due(step)
        with torch.no_grad():
            with jacobians.watching(model, step):
                closure()
            jacobians.learn(BasePoint(model, closure, collectives or Collectives(), step, 0.0))
        jacobians.keep(collectives or Collectives())


def test_jacobians_follow_the_weights() -> None:
    model, jacobians = moved()
    inputs = torch.randn(16, 8, WIDTH)
    assert not close(jacobians.learned, model)
    assert not jacobians.is_due(Step(0, 3))
    corrected(model, jacobians, lambda: model(inputs).square().mean())
    assert close(jacobians.learned, model)


@pytest.mark.parametrize("rows", [8, 16, 64])
def test_tokens_that_do_not_count_change_nothing(rows: int) -> None:
    """With many rows, only some of the tokens are taken; and of all tokens, those that count are taken first."""
    model, jacobians = moved()
    inputs, mask, counts = (tensor.repeat(4, 1, *[1] * (tensor.ndim - 2))[:rows] for tensor in padded())
    assert bool(counts.sum() > TOKENS) is (rows > 8)
    corrected(model, jacobians, lambda: model(inputs, mask, ~counts).square().mean())
    assert close(jacobians.learned, model)
    counts[:, 7] = False
    corrected(model, jacobians, lambda: model(inputs, mask, ~counts).square().mean())
    assert not close(jacobians.learned, model)


def test_few_tokens_are_kept() -> None:
    model, jacobians = moved()
    inputs = torch.randn(16, 40, WIDTH)
    with torch.no_grad(), jacobians.watching(model, Step(0, 0)):
        model(inputs)
    states = [kept for calls in jacobians._noisy._clean.values() for kept in calls]
    assert [kept.before.shape for kept in states] == LAYERS * [(TOKENS, WIDTH)]
    assert [kept.counts.all() for kept in states] == LAYERS * [True]


def test_ranks_share_a_correction() -> None:
    shared: list[torch.Size] = []

    class Doubled(Collectives):
        def all_mean(self, own: Tensor) -> Tensor:
            shared.append(own.shape)
            return 2.0 * own

    changes = []
    for collectives in (Collectives(), Doubled()):
        model, jacobians = moved()
        before = dict(jacobians.learned)
        inputs = torch.randn(16, 8, WIDTH, generator=torch.Generator().manual_seed(0))
        corrected(model, jacobians, lambda: model(inputs).square().mean(), 1, collectives)  # noqa: B023
        changes.append([jacobians.learned[name] - own for name, own in before.items()])
    assert shared.count(torch.Size([WIDTH, WIDTH])) == LAYERS
    for one, two in zip(*changes, strict=True):
        torch.testing.assert_close(2.0 * one, two)


def test_what_is_not_finite_changes_nothing() -> None:
    """A loss that is not finite skips the step; hidden states that are not, with a finite loss, do not."""
    model, jacobians = moved()
    before = {name: own.clone() for name, own in jacobians.learned.items()}
    inputs = torch.randn(16, 8, WIDTH)
    with pytest.raises(NotFinite):
        corrected(model, jacobians, lambda: model(inputs).mean() * torch.nan, 1)
    jacobians.forget()
    jacobians.keep(Collectives())
    assert same(jacobians.learned, before)
    model.layers[1].register_forward_hook(lambda _, __, output: output * torch.inf)
    model.layers[2].register_forward_hook(lambda _, __, output: torch.ones_like(output))
    corrected(model, jacobians, lambda: model(inputs).square().mean(), 1)
    changed = [name for name, own in jacobians.learned.items() if not torch.equal(own, before[name])]
    assert changed == ["layers.0", "layers.1"]  # the input of layer 2 is infinite


@pytest.mark.parametrize("loss", [word_loss, text_loss])
def test_a_run_makes_one_forward_more_in_some_steps(loss: Callable[[nn.Module], Callable[[], Tensor]]) -> None:
    """A resumed run makes the same steps, to the bit; without Jacobians nothing is corrected."""
    runs = []
    for resumed, options in ((False, {}), (True, {}), (False, {"calibration": 0}), (False, {"refresh": 0})):
        model = build("llama")

        def make(model: nn.Module = model, options: dict[str, int] = options) -> DirectFeedback:
            return DirectFeedback(model, lr=1e-3, **{"calibration": 2, "refresh": 3, **options})

        optimizer, forwards = make(), []
        for index in range(8):
            if resumed and index == 5:
                state = optimizer.state_dict()
                optimizer = make()
                optimizer.load_state_dict(state)
            optimizer.step(loss(model))
            forwards.append(optimizer.last_step.forward_passes)
        runs.append((weights_of(model), forwards[1:], optimizer.update.state_dict()["jacobians"]))
    assert [forwards for _, forwards, _ in runs] == [[1, 1, 2, 1, 1, 2, 1]] * 2 + [[1] * 7] * 2
    assert same(runs[0][0], runs[1][0])
    assert same(runs[0][2], runs[1][2])
    assert runs[2][2] == {}
    assert not same(runs[0][2], runs[3][2])
