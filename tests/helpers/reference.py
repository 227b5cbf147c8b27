"""MeZO and CurvZO by their formulas: directions are stored as tensors, and every formula is written out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from zolit.optim.base_point import mean_losses
from zolit.optim.blocks import partition, trainable_weights
from zolit.optim.perturbation.base import Perturbation
from zolit.optim.perturbation.gaussian_pool import GaussianPool
from zolit.optim.randomness import Generators, Step, fold_in, key_of, uniform


def water_fill_by_bisection(weights: Tensor, budget: float) -> Tensor:
    """Returns min(1, c w) of sum B; c is found by halving an interval two hundred times."""
    positive = weights > 0
    if int(positive.sum()) <= budget:
        rest = (budget - int(positive.sum())) / max(int((~positive).sum()), 1)
        return torch.full_like(weights, rest).masked_fill(positive, 1.0)
    low, high = 0.0, 1.0 / float(weights[positive].min())
    for _ in range(200):
        middle = (low + high) / 2.0
        if float((middle * weights).clamp(max=1.0).sum()) < budget:
            low = middle
        else:
            high = middle
    return (high * weights).clamp(max=1.0)


@dataclass
class Naive:
    """Makes the steps that ``zolit.MeZO`` (``blocks=None``) or ``zolit.CurvZO`` should make.

    ``blocks`` maps each block's name to the names of its weights. ``per_parameter`` samples single parameters.
    """

    model: nn.Module
    lr: float
    eps: float
    seed: int
    q: int = 1
    momentum: float = 0.0
    weight_decay: float = 0.0
    blocks: dict[str, list[str]] | None = None
    per_parameter: bool = False
    beta: float = 0.1
    alpha: float = 0.7
    budget_min: float = 0.1
    budget_max: float = 0.8
    phi: float = 0.05
    perturbation: Perturbation = field(default_factory=GaussianPool)
    t: int = 0
    sbar: Tensor | None = None
    velocity: dict[str, Tensor] = field(default_factory=dict)
    moved: list[dict[str, Tensor]] = field(default_factory=list)

    def z(self, direction: int) -> dict[str, Tensor]:
        """Returns a whole direction, by the weight's name, in float32."""
        answer = {}
        self.perturbation.begin_step(Step(self.seed, self.t))
        for weight in self._weights:
            key = fold_in(fold_in(self.seed, self.t, direction), key_of(weight.name))
            pieces = []
            for start, stop in self.perturbation.chunks(weight):
                values, factor = self.perturbation.draw(weight, key, start, stop)
                pieces.append(factor * values)
            answer[weight.name] = torch.cat(pieces).view_as(weight.parameter)
        return answer

    def __post_init__(self) -> None:
        self._weights = trainable_weights(self.model)
        self._theta = {w.name: w.parameter.data for w in self._weights}
        self.perturbation.bind(self.model, self._weights, partition(self._weights))

    def _probabilities(self, count: int) -> Tensor:
        """Returns π of the next step from s̄: eqs. (18)-(20) and (31), with exploration."""
        if self.sbar is None or float(self.sbar.sum()) == 0.0:
            support, entropy, roots = 1.0, 1.0, torch.zeros(count, dtype=torch.float64)
        else:
            roots = self.sbar.double().sqrt()
            support = float(roots.sum() ** 2 / (roots**2).sum()) / count
            share = roots / roots.sum()
            entropy = -float((share * share.clamp(min=1e-300).log()).sum()) / math.log(count)
        budget = self.budget_min + (self.budget_max - self.budget_min) * (
            self.alpha * support + (1.0 - self.alpha) * entropy
        )
        inner = count * (budget - self.phi) / (1.0 - self.phi)
        return self.phi + (1.0 - self.phi) * water_fill_by_bisection(roots, inner)

    def _sample_blocks(self) -> tuple[Tensor, Tensor]:
        assert self.blocks is not None
        pi = self._probabilities(len(self.blocks))
        draws = [uniform(fold_in(self.seed, key_of("selection"), self.t, key_of(name))) for name in self.blocks]
        m = torch.tensor(draws, dtype=torch.float64) < pi
        top = max(range(len(pi)), key=lambda b: (float(pi[b]), key_of(list(self.blocks)[b])))
        none = float((1.0 - pi).prod())
        pi[top] += none
        if not m.any():
            m[top] = True
        return m, pi

    def _sample_parameters(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        sizes = [w.parameter.numel() for w in self._weights]
        pi = self._probabilities(sum(sizes)).float()
        key = fold_in(self.seed, key_of("selection of parameters"), self.t)
        masks, chances = {}, {}
        for weight, part in zip(self._weights, pi.split(sizes), strict=True):
            generator = Generators().seeded(fold_in(key, weight.key, 0), torch.device("cpu"))
            draws = torch.rand(part.shape, generator=generator)
            masks[weight.name] = (draws < part).view_as(weight.parameter)
            chances[weight.name] = part.view_as(weight.parameter)
        return masks, chances

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> list[float]:
        """Makes one step; returns Δ along each direction."""
        names = list(self._theta)
        masks: dict[str, Tensor | float] = dict.fromkeys(names, 1.0)
        chances: dict[str, Tensor | float] = dict.fromkeys(names, 1.0)
        if self.per_parameter:
            masks, chances = self._sample_parameters()  # type: ignore[assignment]  # of tensors, not of plain ones
        elif self.blocks is not None:
            m, pi = self._sample_blocks()
            for b, members in enumerate(self.blocks.values()):
                masks.update(dict.fromkeys(members, float(m[b])))
                chances.update(dict.fromkeys(members, float(pi[b])))
        derivatives, us = [], []
        origin = {name: theta.clone() for name, theta in self._theta.items()}
        for i in range(self.q):
            u = {name: z * masks[name] for name, z in self.z(i).items()}
            losses = []
            for sign in (1.0, -1.0):
                for name in names:
                    self._theta[name].copy_(origin[name] + sign * self.eps * u[name].to(origin[name].dtype))
                losses.append(float(mean_losses(closure)))
            derivatives.append((losses[0] - losses[1]) / (2.0 * self.eps))
            us.append(u)
        self.moved = us
        for name in names:
            ghat = sum(
                d / self.q * u[name].to(origin[name].dtype) / chances[name]
                for d, u in zip(derivatives, us, strict=True)
            )
            decay = self.weight_decay if origin[name].ndim > 1 else 0.0
            ghat = ghat + decay * origin[name]
            if self.momentum:
                past = self.velocity.get(name, torch.zeros_like(origin[name]))
                ghat = self.velocity[name] = self.momentum * past + ghat
            self._theta[name].copy_(origin[name] - self.lr * ghat)
        if self.per_parameter:
            self._learn_parameters(derivatives, us, masks)
        elif self.blocks is not None:
            self._learn_blocks(derivatives, us, m)
        self.t += 1
        return derivatives

    def _learn_blocks(self, derivatives: Sequence[float], us: Sequence[dict[str, Tensor]], m: Tensor) -> None:
        """Updates s̄ of the sampled blocks, eqs. (27) and (8); the average begins at the first step's mean."""
        assert self.blocks is not None
        scores = torch.zeros(len(self.blocks), dtype=torch.float64)
        for d, u in zip(derivatives, us, strict=True):
            norms = torch.zeros(len(self.blocks), dtype=torch.float64)
            for b, members in enumerate(self.blocks.values()):
                for name in members:
                    norms[b] += u[name].view(-1).dot(u[name].view(-1))
            scores += d**2 * norms.double() / norms.double().sum() / len(us)
        if self.sbar is None:
            self.sbar = torch.full_like(scores, float(scores[m].mean()))
        self.sbar = torch.where(m, (1.0 - self.beta) * self.sbar + self.beta * scores, self.sbar)

    def _learn_parameters(
        self, derivatives: Sequence[float], us: Sequence[dict[str, Tensor]], masks: dict[str, Tensor | float]
    ) -> None:
        """Updates s̄ of the sampled parameters, eqs. (7) and (8)."""
        m = torch.cat([torch.as_tensor(masks[w.name]).view(-1) for w in self._weights])
        scores = torch.zeros(m.numel(), dtype=torch.float64)
        for d, u in zip(derivatives, us, strict=True):
            squares = torch.cat([u[w.name].view(-1) for w in self._weights]).double() ** 2
            scores += d**2 * squares / squares.sum() / len(us)
        if self.sbar is None:
            expected = float(self._probabilities(m.numel()).sum())
            self.sbar = torch.full_like(scores, sum(d**2 for d in derivatives) / len(us) / expected)
        self.sbar = torch.where(m, (1.0 - self.beta) * self.sbar + self.beta * scores, self.sbar)
