"""Gradients are passed on one by one: each whole, once, and in the same order on all ranks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tests.helpers.tiny import layered, regression, same, weights_of
from zolit import FirstOrder, NonFiniteLossError, UserError
from zolit.optim.arrivals import Read
from zolit.optim.base_point import BasePoint
from zolit.optim.blocks import Weight, trainable_weights
from zolit.optim.collectives import Collectives
from zolit.optim.randomness import Step


class Tied(nn.Module):
    """A language model with one matrix for embedding and head, or two; a padding token and a table of positions."""

    def __init__(self, tied: bool, padding: int | None = None, scaled: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embed = nn.Embedding(60, 8, padding_idx=padding)
        self.positions = nn.Embedding(40, 8)
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.head = nn.Linear(8, 60, bias=False)
        self.scaled = scaled
        for parameter in self.parameters():
            parameter.data.normal_(0.0, 0.5, generator=generator)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: Tensor, keep: int) -> Tensor:
        hidden = self.embed(ids)
        hidden += self.positions(torch.arange(ids.shape[1]))  # in place, as some models do
        for layer in self.layers:
            hidden = hidden + torch.tanh(layer(hidden))
        logits: Tensor = self.head(hidden[:, -keep:])
        return logits * 0.5 if self.scaled else logits


def words(model: Tied, keep: int = 1, rows: int = 3, seed: int = 1) -> Callable[[], Tensor]:
    ids = torch.randint(60, (rows, 7), generator=torch.Generator().manual_seed(seed))
    ids[:, :3] = 5  # one token several times

    def closure() -> Tensor:
        logits = model(ids, keep).float()
        return functional.cross_entropy(logits.flatten(0, 1), ids[:, :keep].flatten(), reduction="none")

    return closure


def passed(
    model: nn.Module, closure: Callable[[], Tensor], collectives: Collectives | None = None
) -> dict[str, Tensor]:
    """Returns whole gradients in the order in which they were passed on."""
    found: dict[str, Tensor] = {}

    def receive(weight: Weight, read: Read) -> None:
        assert weight.name not in found
        assert not torch.is_grad_enabled()
        alive = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
        assert not alive
        numel = weight.parameter.numel()
        halves = [read(0, numel // 2), read(numel // 2, numel)]
        found[weight.name] = torch.cat(halves).view(weight.parameter.shape)

    base = BasePoint(model, closure, collectives or Collectives(), Step(0, 0), 0.0)
    base.pass_gradients(trainable_weights(model), receive)
    assert base.backward_passes == len(base.losses) == 1
    assert all(parameter.grad is None for parameter in model.parameters())
    return found


def assert_same_as_autograd(model: nn.Module, closure: Callable[[], Tensor]) -> None:
    found = passed(model, closure)
    names, parameters = zip(*model.named_parameters(), strict=True)
    expected = torch.autograd.grad(closure().mean(), parameters, materialize_grads=True)
    assert found.keys() == set(names)
    for name, own in zip(names, expected, strict=True):
        torch.testing.assert_close(found[name], own.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("padding", [None, 5, -1])
@pytest.mark.parametrize("keep", [1, 7])  # the head's rows are fewer than a row of its matrix, or more
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_embeddings_and_heads(tied: bool, scaled: bool, keep: int, padding: int | None) -> None:
    model = Tied(tied, padding, scaled)
    assert_same_as_autograd(model, words(model, keep))


@pytest.mark.parametrize("rows", [3, 12])  # thin terms, and more tokens than rows of the embedding
@pytest.mark.parametrize("parts", [1, 4, 30])
def test_a_matrix_that_is_used_many_times(parts: int, rows: int) -> None:
    """Thin terms are added up where they would take more memory than the matrix."""
    model = Tied(tied=True)
    closures = [words(model, rows=rows, seed=seed) for seed in range(parts)]
    assert_same_as_autograd(model, lambda: torch.cat([closure() for closure in closures]))


def test_parts_that_the_backward_pass_computes_again() -> None:
    model = Tied(tied=True)
    closures = [words(model, seed=seed) for seed in range(3)]

    def again() -> Tensor:
        return torch.cat([checkpoint(c, use_reentrant=False, preserve_rng_state=False) for c in closures])

    assert_same_as_autograd(model, again)


def test_a_head_that_is_used_in_another_way_too() -> None:
    """One use is thin, and autograd forms the gradient of the other."""
    model = Tied(tied=True)
    closure = words(model)
    assert_same_as_autograd(model, lambda: closure() + (model.embed.weight @ torch.arange(8.0)).tanh().mean())


def test_weights_without_a_gradient_get_zeros() -> None:
    model = layered()
    found = passed(model, lambda: model.head(torch.ones(3, 6)).square().mean(1))
    assert found["head.weight"].any()
    assert len(found) == 9
    assert not any(own.any() for name, own in found.items() if name != "head.weight")


@pytest.mark.parametrize("used", [1, 2])
def test_ranks_exchange_gradients_in_one_order(used: int) -> None:
    """The order is that of the weights from the last to the first, whatever layers the batch of a rank uses."""

    class Counted(Collectives):
        size = 2

        def all_mean(self, own: Tensor) -> Tensor:
            sent.append(own.shape)
            return own.mul_(2.0)

    sent: list[torch.Size] = []
    model = layered(order=("head", "norm", "layers", "embed"))  # not the order of the backward pass
    inputs = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))

    def closure() -> Tensor:
        hidden = model.embed(inputs)
        for layer in model.layers[:used]:  # type: ignore[index]  # a ModuleList
            hidden = layer(hidden)
        return model.head(model.norm(hidden)).square().mean(1)

    found = passed(model, closure, Counted())
    names = [name for name, _ in model.named_parameters()]
    assert list(found) == names[::-1]
    assert sent == [torch.Size([1]), *[parameter.shape for parameter in model.parameters()][::-1]]
    expected = torch.autograd.grad(closure().mean(), list(model.parameters()), materialize_grads=True)
    for name, own in zip(names, expected, strict=True):
        torch.testing.assert_close(found[name], 2.0 * own)


@pytest.mark.parametrize("whole", [False, True])
def test_only_what_is_out_of_turn_is_held(whole: bool) -> None:
    """With several ranks, and weights in the order of the forward, gradients go on at once: none waits for a
    module that the batch of this rank does not use."""

    class Two(Collectives):
        size = 2

    model = layered(order=("embed", "layers", "norm", "head"))
    inputs = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    arrived: list[str] = []
    seen: dict[str, int] = {}

    def closure() -> Tensor:
        hidden = model.embed(inputs)
        for layer in model.layers:  # type: ignore[union-attr]  # a ModuleList
            hidden = layer(hidden)
        return (model.head(model.norm(hidden)) if whole else hidden).square().mean(1)

    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: arrived.append(name))
    base = BasePoint(model, closure, Two(), Step(0, 0), 0.0)
    base.pass_gradients(trainable_weights(model), lambda weight, _: seen.update({weight.name: len(arrived)}))
    assert len(seen) == 9
    places = [name for name in seen if name in arrived]
    assert all(seen[name] - place <= 2 for place, name in enumerate(places, 1))  # a matrix and its bias


def test_a_gradient_in_parts_is_refused() -> None:
    model = layered()
    closure = regression(model)

    def reentrant() -> Tensor:
        anchor = torch.zeros((), requires_grad=True)
        return sum(checkpoint(lambda _: closure(), anchor, use_reentrant=True) for _ in range(2))  # type: ignore[return-value]  # sum begins at 0

    with pytest.raises(UserError, match=r"keep_gradients: the gradient of .* arrives in parts"):
        FirstOrder(model, lr=1e-2, keep_gradients=False).step(reentrant)


def bad_gradient(model: nn.Module, closure: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Adds the root of 0 in one weight: its value is 0, and its gradient is infinite times 0."""
    return lambda: closure() + (model.norm.weight * 0.0).sum().sqrt()  # type: ignore[operator]  # a weight


@pytest.mark.parametrize("rule", ["adam", "sgd", "factored"])
def test_a_gradient_that_is_not_finite_leaves_its_weight_alone(rule: str) -> None:
    """It comes when other weights have moved. Its weight and its state keep their values."""
    model, twin = layered(), layered()
    optimizer, other = (FirstOrder(one, lr=1e-2, rule=rule, keep_gradients=False) for one in (model, twin))
    for each, one in ((optimizer, model), (other, twin)):
        each.step(regression(one))
    before = weights_of(model)
    with pytest.warns(RuntimeWarning, match=r"gradient of norm\.weight is not finite; this weight did not move, and"):
        optimizer.step(bad_gradient(model, regression(model)))
    other.step(regression(twin))
    assert optimizer.last_step is not None
    assert optimizer.last_step.skipped
    after, expected = weights_of(model), weights_of(twin)
    assert torch.equal(after.pop("norm.weight"), before.pop("norm.weight"))
    expected.pop("norm.weight")
    assert same(after, expected)
    optimizer.step(regression(model))
    assert not optimizer.last_step.skipped
    assert all(weight.isfinite().all() for weight in model.parameters())


@pytest.mark.parametrize("rule", ["adam", "sgd", "factored"])
def test_no_gradient_is_finite(rule: str) -> None:
    model = layered()
    optimizer = FirstOrder(model, lr=1e-2, rule=rule, keep_gradients=False, max_skipped=2)
    before = weights_of(model)
    closure = regression(model)

    def every() -> Tensor:
        return closure() + sum((parameter * 0.0).sum() for parameter in model.parameters()).sqrt()

    state = optimizer.state_dict()["zo"]["update"]
    with pytest.warns(RuntimeWarning, match="is not finite; the weights did not move"):
        optimizer.step(every)
    assert same(weights_of(model), before)
    assert optimizer.state_dict()["zo"]["update"] == state
    with pytest.raises(NonFiniteLossError, match="is not finite, for 2 steps in a row"):
        optimizer.step(every)


def test_a_loss_that_is_not_finite_moves_nothing_and_costs_no_backward_pass() -> None:
    model = layered()
    optimizer = FirstOrder(model, lr=1e-2, keep_gradients=False)
    before = weights_of(model)
    with pytest.warns(RuntimeWarning, match="not all finite"):
        optimizer.step(lambda: regression(model)() * float("nan"))
    assert same(weights_of(model), before)
    assert optimizer.last_step is not None
    assert optimizer.last_step.total_backward_passes == 0
