"""Lets Lightning's callbacks average the weights of a run, and refuses what they would average wrongly."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging

from zolit.errors import require
from zolit.training.split import SplitStrategy

P = ParamSpec("P")
T_co = TypeVar("T_co", covariant=True)


class Shared(Generic[P, T_co]):
    """A function that copies of its owner share. A factory of the command line refers to the trainer, and to all of it.

    Args:
        function: The function.
    """

    def __init__(self, function: Callable[P, T_co]) -> None:
        self._function = function

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T_co:
        """Calls the function."""
        return self._function(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Shared[P, T_co]:
        return self


def averaging(trainer: Trainer) -> list[WeightAveraging]:
    """Returns the callbacks that average weights."""
    known: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set, not declared
    return [callback for callback in known if isinstance(callback, WeightAveraging)]


def prepare_averaging(trainer: Trainer) -> None:
    """Checks and sets callbacks that average weights. Called before their setup.

    Raises:
        UserError: If an average cannot be right.
    """
    known: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set, not declared
    require(
        not any(isinstance(callback, StochasticWeightAveraging) for callback in known),
        "trainer.callbacks: StochasticWeightAveraging sets learning rates by epochs, and copies the model before it "
        "is loaded; use WeightAveraging or EMAWeightAveraging",
    )
    if not (callbacks := averaging(trainer)):
        return
    require(
        trainer.precision in ("32-true", "bf16-mixed"),
        f"trainer.precision: {trainer.precision} rounds the small steps of an average away; use 32-true or bf16-mixed "
        f"with {type(callbacks[0]).__name__}",
    )
    require(
        not isinstance(trainer.strategy, SplitStrategy),
        f"trainer.strategy: split has no whole model that {type(callbacks[0]).__name__} could average; use replicated",
    )
    for callback in callbacks:
        callback._use_buffers = False  # they are constants, and an average rounds integers down
    warnings.filterwarnings("ignore", message="You're using the WeightAveraging callback with a model that overrides")


def check_averaged(module: LightningModule) -> None:
    """Checks that the averaged copy has the weights of the model. Called when the optimizer has been made.

    Raises:
        UserError: If the method has added weights, or there are weights that cannot be averaged.
    """
    for callback in averaging(module.trainer):
        name, average = type(callback).__name__, callback._average_model
        require(
            average is None or len(list(average.module.parameters())) == len(list(module.parameters())),
            f"trainer.callbacks: {name} cannot average the weights that this method adds to a model; use another "
            "model.optimizer",
        )
        require(
            all(parameter.is_floating_point() and parameter.element_size() >= 4 for parameter in module.parameters()),
            f"trainer.callbacks: {name} cannot average weights of 8 or 16 bits; name a model without them",
        )
