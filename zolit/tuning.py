"""Which weights of a language model are tuned: all of them, some by name, or adapters that peft adds."""

from __future__ import annotations

import re
import warnings
from abc import ABC, abstractmethod
from typing import cast

import torch
from peft import LoraConfig, PeftConfig, PrefixTuningConfig, TaskType, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from typing_extensions import override

from zolit.errors import UserError, require
from zolit.pretrained import fills_masks


class Tuning(ABC):
    """A choice of weights.

    Attributes:
        prefix: How many keys and values come before those of a text.
    """

    prefix = 0

    @abstractmethod
    def prepare(self, model: PreTrainedModel) -> nn.Module:
        """Returns the model with its trainable weights chosen; whatever was loaded stays as it is.

        Raises:
            UserError: If the model has no such weights.
        """


class Full(Tuning):
    """Weights of the model itself.

    Args:
        pattern: Regular expression; weights in whose names it finds nothing are frozen. The default finds all.

    Raises:
        UserError: If it is no regular expression.
    """

    def __init__(self, pattern: str = "") -> None:
        try:
            self._pattern = re.compile(pattern)
        except re.error as error:
            msg = f"model.tuning.pattern: {pattern!r} is not a valid regular expression ({error})"
            raise UserError(msg) from None

    @override
    def prepare(self, model: PreTrainedModel) -> nn.Module:
        found = False
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(bool(self._pattern.search(name)))
            found = found or parameter.requires_grad
        require(found, f"model.tuning.pattern: {self._pattern.pattern!r} matches no weight of the model")
        return cast("nn.Module", model)


class LoRA(Tuning):
    """Low-rank adapters (Hu et al., arXiv 2106.09685), by peft, in float32; the defaults are MeZO's (arXiv 2305.17333).

    Args:
        rank: r.
        alpha: The product of the adapters is scaled by alpha / r.
        targets: Names of the layers that get adapters; null takes peft's choice for the architecture, mostly the query
            and value projections.
        seed: Of the first factor; the second begins at 0.

    Raises:
        UserError: If the rank is not positive.
    """

    def __init__(self, rank: int = 8, alpha: int = 16, targets: list[str] | None = None, seed: int = 0) -> None:
        require(rank >= 1, f"model.tuning.rank: an adapter needs at least rank 1, not {rank}")
        self._config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets)
        self._seed = seed

    @override
    def prepare(self, model: PreTrainedModel) -> nn.Module:
        return _adapted(model, self._config, self._seed, "model.tuning.targets")


class Prefix(Tuning):
    """A few keys and values of their own before every layer's (Li and Liang, arXiv 2101.00190), by peft.

    peft begins with random ones; MeZO's code (arXiv 2305.17333) begins with those of real tokens.

    Args:
        tokens: How many.
        seed: Of what they begin with.

    Raises:
        UserError: If there is none.
    """

    def __init__(self, tokens: int = 5, seed: int = 0) -> None:
        require(tokens >= 1, f"model.tuning.tokens: a prefix needs at least 1 token, not {tokens}")
        self.prefix = tokens
        self._config = PrefixTuningConfig(num_virtual_tokens=tokens)
        self._seed = seed

    @override
    def prepare(self, model: PreTrainedModel) -> nn.Module:
        require(not fills_masks(model.config), "model.tuning: a prefix goes with causal models; take LoRA for this one")
        # Said by transformers of how peft hands the prefix over.
        warnings.filterwarnings("ignore", message="`past_key_values` is deprecated", category=FutureWarning)
        return _adapted(model, self._config, self._seed, "model.tuning")


def _adapted(model: PreTrainedModel, config: PeftConfig, seed: int, option: str) -> nn.Module:
    """Has peft add what the configuration says, with random numbers of a seed and no other."""
    # Said by transformers of how peft asks.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config.task_type = None if fills_masks(model.config) else TaskType.CAUSAL_LM
            adapted = get_peft_model(model, config)
    except ValueError as error:
        msg = f"{option}: {' '.join(str(error).split())}"
        raise UserError(msg) from error
    adapted.train(False)
    return cast("nn.Module", adapted)
