"""Every pair of stages works for three steps, or is refused before a forward and before a weight moves."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.tiny import same, weights_of
from zolit import UserError, ZerothOrder, optim
from zolit.optim import SGD, Adam, BlockScores, FixedBudget, Stage, Streamed
from zolit.optim.modules.adapters import attach

KINDS: dict[str, type[Stage]] = {
    "selection": optim.Selection,
    "perturbation": optim.Perturbation,
    "prober": optim.Prober,
    "estimator": optim.Estimator,
    "update": optim.Update,
}

NEEDED: dict[str, dict[str, Any]] = {
    "Backprop": {"rule": Adam},
    "CurvatureSampling": {"budget": lambda: FixedBudget(0.5), "scores": BlockScores},
    "Feedback": {"rule": Adam},
    "FusedBackprop": {"rule": Adam},
    "LayerProjection": {"inner": SGD},
    "ParameterSampling": {"budget": lambda: FixedBudget(0.5)},
    "UniformSampling": {"budget": lambda: FixedBudget(0.5), "scores": lambda: None},
}
"""Factories of the arguments without a default."""

ROOMS = {("OneLayer", "within"), ("DiagonalCurvature", "inner"), ("LayerProjection", "inner"), ("Backprop", "rest")}
"""Stages that take another stage of their kind."""

PAGE = {"AnswerRegression", "Knapsack", "OneShotBasis"}
"""What ``docs/mixing.md`` says is refused with every other stage: a method of its own builds them."""

Build = Callable[[], Stage]
Combination = dict[str, str]


def is_abstract(stage: type[Stage]) -> bool:
    return any(getattr(getattr(stage, name), "__isabstractmethod__", False) for name in dir(stage))


def made(name: str, **inner: Build) -> Stage:
    arguments = {**NEEDED.get(name, {}), **inner}
    stage: Stage = getattr(optim, name)(**{option: build() for option, build in arguments.items()})
    return stage


def plain(kind: type[Stage]) -> dict[str, Build]:
    """Returns factories of all exported stages of a kind, with default options."""
    exported = {name: getattr(optim, name) for name in optim.__all__}
    stages = {n: c for n, c in exported.items() if isinstance(c, type) and issubclass(c, kind) and not is_abstract(c)}
    return {name: lambda name=name: made(name) for name in stages}  # type: ignore[misc]  # the name of this turn


BUILD: dict[str, dict[str, Build]] = {option: plain(kind) for option, kind in KINDS.items()}
BUILD["prober"]["joint"] = lambda: Streamed(joint=True)
BUILD["estimator"]["adaptive"] = lambda: optim.Bayesian(adaptive=True)
PLAIN = {option: list(builds) for option, builds in BUILD.items()}
for outer, room in sorted(ROOMS):
    (option,) = (option for option, builds in BUILD.items() if outer in builds)
    for inner, build in list(BUILD[option].items()):
        if inner in PLAIN[option]:
            nested = {room: build}
            BUILD[option][f"{outer}({inner})"] = lambda outer=outer, nested=nested: made(outer, **nested)  # type: ignore[misc]  # as above

BACKGROUNDS: list[Combination] = [
    {
        "selection": "AllBlocks",
        "perturbation": "Gaussian",
        "prober": "Streamed",
        "estimator": "Central",
        "update": "SGD",
    },
    {"perturbation": "LowRank", "prober": "PerExampleProber", "estimator": "PerExampleSPSA"},
    {"estimator": "NoProbes", "update": "Backprop"},
    {"perturbation": "DiagonalCurvature", "prober": "InPlace"},
]
"""Stages with which a pair is tried: what is not named is as in the first."""


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.v_proj = nn.Linear(4, 4)  # the name that LayerProjection looks for
        self.out = nn.Linear(4, 4)  # what Feedback trains

    def forward(self, hidden: Tensor) -> Tensor:
        added: Tensor = self.out(torch.tanh(self.v_proj(hidden)))
        return hidden + added


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layers, self.head = nn.Linear(3, 4), nn.ModuleList([Block(), Block()]), nn.Linear(4, 1)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data.normal_(0.0, 0.5, generator=generator)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.embed(inputs)
        for layer in self.layers:
            hidden = layer(hidden)
        answer: Tensor = self.head(hidden)
        return answer[:, 0]


class Trial:
    """Three steps of one combination. ``wrong`` says what is not as it should be; ``refusal`` is the message."""

    def __init__(self, combination: Combination, adapted: bool = False) -> None:
        self.model, self.calls, self.wrong, self.refusal = Model(), 0, "", ""
        if adapted:
            attach(self.model, 1)
        before = weights_of(self.model)
        try:
            self._run({option: BUILD[option][name]() for option, name in combination.items()})
        except UserError as error:
            self.refusal = str(error)
            searched = "DirectFeedback found no trainable matrix" in self.refusal  # a forward shows which there are
            if (self.calls and not searched) or not same(weights_of(self.model), before):
                self.wrong = f"refused after {self.calls} forwards: {error}"
            elif not searched and self.refusal.partition(":")[0] not in {*KINDS, "within", "inner", "rest", "pattern"}:
                self.wrong = f"the message names no option: {error}"
        except Exception as error:  # any other error is what the test looks for
            self.wrong = f"{type(error).__name__}: {error}"
        self.weights = weights_of(self.model)
        if not self.refusal and not self.wrong:
            moved = {name for name, theta in self.weights.items() if not torch.equal(theta, before[name])}
            if not moved:
                self.wrong = "no weight moved"
            elif not all(bool(theta.isfinite().all()) for theta in self.weights.values()):
                self.wrong = "weights are not finite"
            elif combination["update"] == "SGD" and not moved <= self.chosen:
                self.wrong = f"weights outside of the sample moved: {moved - self.chosen}"

    def _run(self, stages: dict[str, Any]) -> None:
        optimizer = ZerothOrder(self.model, lr=1e-3, eps=0.05, **stages)
        inputs = torch.linspace(-1.0, 1.0, 18).view(6, 3)
        self.chosen: set[str] = set()

        def closure() -> Tensor:
            self.calls += 1
            copies = inputs.repeat(optimizer.batch_repeats, 1)
            return (self.model(copies) - copies.sum(1)).square()

        for _ in range(3):
            optimizer.step(closure, repeats_batch=True)
            report = optimizer.last_step
            assert report is not None
            assert not report.skipped
            names = zip(report.selection.names, report.selection.chosen.tolist(), strict=True)
            self.chosen |= {name for name, one in names if one}


def combinations(first: str, second: str) -> list[Combination]:
    """Returns each pair of two kinds on every background, and nested stages on the first one."""
    found = {}
    for left, right in itertools.product(BUILD[first], BUILD[second]):
        nested = left not in PLAIN[first] or right not in PLAIN[second]
        for background in BACKGROUNDS[:1] if nested else BACKGROUNDS:
            combination = {**BACKGROUNDS[0], **background, first: left, second: right}
            found[tuple(combination.values())] = combination
    return list(found.values())


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(KINDS, 2)))
def test_pairs_work_or_are_refused_at_once(first: str, second: str) -> None:
    wrong = {}
    for combination in combinations(first, second):
        for adapted in {False, "OneShotBasis" in combination["perturbation"]}:
            if message := Trial(combination, adapted).wrong:
                wrong[tuple(combination.values()), adapted] = message
    assert not wrong


def test_every_stage_works_with_some_others() -> None:
    """A refusal that is too wide would make the other tests pass."""
    for option, names in PLAIN.items():
        for name in set(names) - PAGE:
            tried = [Trial({**BACKGROUNDS[0], **background, option: name}) for background in BACKGROUNDS]
            alone = {**BACKGROUNDS[0], **BACKGROUNDS[1], option: name}  # laws of single examples
            assert not all(trial.refusal for trial in [*tried, Trial(alone)]), name
    for name in PAGE:
        (option,) = (option for option, names in PLAIN.items() if name in names)
        without_probes = BACKGROUNDS[2] if name == "AnswerRegression" else {}
        assert Trial({**BACKGROUNDS[0], **without_probes, option: name}).refusal.startswith(f"{option}: {name}")


@pytest.mark.parametrize("selection", BUILD["selection"])
def test_probers_make_the_same_steps(selection: str) -> None:
    """In place or streamed, one by one or jointly: an error of a pair would show in one of them."""
    laws = BUILD["perturbation"] if selection in PLAIN["selection"] else PLAIN["perturbation"]
    for law in laws:
        pair = {**BACKGROUNDS[0], "selection": selection, "perturbation": law}
        adapted = "OneShotBasis" in law
        trials = [Trial({**pair, "prober": prober}, adapted) for prober in ("InPlace", "Streamed", "joint")]
        for trial in trials[1:]:
            assert trial.refusal == trials[0].refusal
            for name, theta in trials[0].weights.items():
                torch.testing.assert_close(trial.weights[name], theta, rtol=0.0, atol=3e-5, msg=f"{law}, {name}")
