"""Measures the mean Jacobians of all layers of a model on several batches, and how well they fit on others."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from zolit.optim.base_point import BasePoint, Closure, NotFinite
from zolit.optim.collectives import Collectives
from zolit.optim.feedback.equations import Equations, NoisyForwards, all_finite
from zolit.optim.feedback.stream import ResidualStream
from zolit.optim.randomness import Step


class Measured(NamedTuple):
    """Mean Jacobians, from the first layer to the last.

    Attributes:
        jacobians: A_l of each layer, shape (d, d), float32.
        fits: R² of each layer, on forwards that were not used for its A: the share of the squares of w that A u
            explains. 1 is a linear layer. Below 0, A is worse than 0.
        tokens: Number of tokens from which all A are computed; the median of the layers, which leave outliers out.
        forwards: Number of forwards, with and without noise, of the fit and of its test.
    """

    jacobians: list[Tensor]
    fits: list[float]
    tokens: int
    forwards: int


class Calibration:
    """Adds up the equations of batches; see ``NoisyForwards``. Each batch takes two forwards.

    Args:
        model: The model, in evaluation mode.
        seed: Seed of the noise.

    Raises:
        UserError: If the model has no list of layers.
    """

    def __init__(self, model: nn.Module, seed: int = 0) -> None:
        self._model = model
        self._seed = seed
        self._noisy = NoisyForwards(ResidualStream(model).layers)
        self._equations: dict[bool, dict[str, Equations]] = {}
        self._forwards = 0

    @torch.no_grad()
    def add(self, closure: Closure, held_out: bool = False) -> None:
        """Makes a forward without noise and one with noise. Called once for each batch.

        Args:
            closure: Makes a forward of the batch, and returns its loss.
            held_out: Whether the batch tests the fit, rather than adding to it. Each kind needs one batch or more.

        Raises:
            NotFinite: If a loss is NaN or infinite.
        """
        step = Step(self._seed, self._forwards)
        base = BasePoint(self._model, closure, Collectives(), step, 0.0)
        with self._noisy.watching(self._model, step):
            base.loss()
        equations = self._equations.setdefault(held_out, self._noisy.empty())
        with self._noisy.noise(step, 0, equations):
            base.loss()
        self._noisy.forget()
        self._forwards += 2

    def solved(self) -> Measured:
        """Returns the Jacobians. Called after the last batch.

        Raises:
            NotFinite: If a Jacobian is not finite.
        """
        fitted, held_out = self._equations[False], self._equations[True]
        jacobians = {name: own.solved() for name, own in fitted.items()}
        if not all_finite(jacobians.values()):
            raise NotFinite("the calibration")
        fits = [float(held_out[name].explained(jacobian)) for name, jacobian in jacobians.items()]
        tokens = int(torch.stack([own.tokens for own in fitted.values()]).median())
        return Measured(list(jacobians.values()), fits, tokens, self._forwards)
