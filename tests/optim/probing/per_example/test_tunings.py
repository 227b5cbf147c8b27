"""Per-example probing of language models, whatever part of them is tuned, against single examples and paddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.directions import directions_of, moved_along
from tests.helpers.padded import batch, choices, language, likelihoods
from zolit import PerExample, UserError
from zolit.models.tuning import Full, LoRA, PrefixTuning, Tuning

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")

TUNINGS: dict[str, Callable[[], Tuning]] = {
    "all": Full,
    "prefix": lambda: PrefixTuning(3),
    "lora": lambda: LoRA(2, targets=["q_proj", "down_proj", "lm_head"]),
    "embedding": lambda: Full("embed_tokens"),
    "norms": lambda: Full("norm"),
    "head": lambda: Full("lm_head"),
    "all but head": lambda: Full("embed|layers"),
}
LAWS: dict[str, dict[str, Any]] = {"plain": {"guided": False}, "guided": {}, "guided, rank 2": {"rank": 2}}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("tuning", "kind"), [*((tuning, "llama") for tuning in TUNINGS), ("biases", "opt")])
def test_equals_each_example_by_itself_with_all_of_its_answers(tuning: str, kind: str, law: str) -> None:
    """Each example is alone, without padding, and its weights are written."""
    made = language(TUNINGS[tuning]() if tuning in TUNINGS else Full("bias"), kind=kind)
    optimizer = PerExample(made.model, lr=0.0, eps=1e-2, **LAWS[law])
    whole = batch()
    directions = directions_of(optimizer, 0, whole.prompt_index.tolist())
    queries = torch.tensor([[0.3], [-0.3]], dtype=torch.float64)
    with torch.no_grad():
        found = optimizer.prober.losses(choices(made, whole), directions, queries)
        for query, losses in zip(queries[:, 0].tolist(), found, strict=True):
            for row, prompt in enumerate(whole.prompt_index.tolist()):
                with moved_along(directions, row, query):
                    (alone, _) = choices(made, batch(prompts=[prompt]))()
                torch.testing.assert_close(losses[row], alone, rtol=1e-5, atol=1e-6)
    assert float((found[0] - found[1]).abs().max()) > 1e-6


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(
    ("tuning", "tied"),
    [(tuning, tied) for tied in (False, True) for tuning in TUNINGS if not (tied and tuning == "head")],
)
def test_padding_of_prompts_and_answers_changes_no_coefficient(tuning: str, tied: bool, law: str) -> None:
    found = []
    for left, right in ((0, 0), (4, 0), (0, 3), (1, 6)):
        targets = {"targets": ["q_proj"]} if tied else {"targets": ["q_proj", "lm_head"]}
        made = language(LoRA(2, **targets) if tuning == "lora" else TUNINGS[tuning](), tied=tied)
        optimizer = PerExample(made.model, lr=0.0, eps=1e-3, **LAWS[law])
        for losses in (likelihoods, choices):
            rows = batch(left, right)
            ids = rows.prompt_index if losses is choices else rows.indices
            optimizer.step(losses(made, rows), examples=ids.tolist())
            found.append(torch.tensor(optimizer.last_step.coefficients))
    assert all(bool(one.any()) for one in found)
    for index, one in enumerate(found):
        torch.testing.assert_close(one, found[index % 2], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("tuning", TUNINGS)
def test_micro_batches_change_no_coefficient(tuning: str, law: str) -> None:
    found = []
    for parts in ([[0, 1, 2]], [[0], [1, 2]], [[0, 1], [2]]):
        made = language(TUNINGS[tuning]())
        optimizer = PerExample(made.model, lr=0.0, eps=1e-3, **LAWS[law])
        closures = [likelihoods(made, batch(prompts=part)) for part in parts]
        optimizer.step(lambda closures=closures: torch.cat([losses() for losses in closures]), examples=[4, 5, 6])
        found.append(torch.tensor(optimizer.last_step.coefficients))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-7)


class Routed(nn.Module):
    """A model in which each call uses one of two experts."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)])
        self.head = nn.Linear(3, 1, bias=False)

    def forward(self, inputs: Tensor, expert: int) -> Tensor:
        return self.head(torch.tanh(self.experts[expert](inputs))).mean((1, 2))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("experts", [(0, 0), (0, 1), (1, 1)])
def test_a_weight_that_no_forward_of_an_example_uses(law: str, experts: tuple[int, int]) -> None:
    """Losses equal those of single examples, and a guided matrix moves for the examples that use it."""
    torch.manual_seed(0)
    model = Routed().double()
    inputs, before = torch.randn(4, 2, 4).double(), {name: value.clone() for name, value in model.named_parameters()}

    def losses() -> Tensor:
        return torch.cat([model(inputs[:2], experts[0]), model(inputs[2:], experts[1])]).square()

    optimizer = PerExample(model, lr=1.0, eps=1e-2, **LAWS[law])
    optimizer.step(losses)
    moved = {name: value.detach() - before[name] for name, value in model.named_parameters()}
    slopes = []
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(before[name])
    directions = directions_of(optimizer, 0, range(4), begin=False)
    for index in range(4):
        ends = []
        for query in (1e-2, -1e-2):
            with moved_along(directions, index, query), torch.no_grad():
                ends.append(float(model(inputs[index : index + 1], experts[index // 2]).square()))
        slopes.append((ends[0] - ends[1]) / 8e-2)
    assert optimizer.last_step.coefficients == pytest.approx(slopes, rel=1e-5)
    for index, expert in enumerate(model.experts):
        used = index in experts
        assert bool(moved[f"experts.{index}.weight"].any()) == (used or law == "plain"), expert


class Outside(nn.Module):
    """A model whose head is no part of its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.tanh(self.layer(inputs))


def test_a_weight_that_is_used_outside_of_a_call_is_refused_unless_the_call_follows() -> None:
    model, inputs = Outside(), torch.randn(3, 2, 4)
    before = {name: value.clone() for name, value in model.named_parameters()}

    def after() -> Tensor:
        return torch.cat([model.head(model(inputs[rows])).mean((1, 2)) for rows in ([0, 1], [1, 2])])

    def before_more() -> Tensor:
        return model.head(inputs[:2]).mean() + model(inputs).mean((1, 2))

    for losses, message in (
        (after, "is used after the last call"),
        (before_more, "is used for 2 examples before a call of the model with 3"),
    ):
        with pytest.raises(UserError, match=f"head.weight {message}") as caught:
            PerExample(model, lr=1.0).step(losses)
        assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
