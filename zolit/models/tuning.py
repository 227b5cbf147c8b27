"""Chooses the weights of a language model to train: all, some by name, or adapters of peft."""

from __future__ import annotations

import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import cast

import torch
from lightning.pytorch.utilities import rank_zero_warn
from peft import LoraConfig, PeftConfig, PrefixTuningConfig, TaskType, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel
from typing_extensions import override

from zolit.errors import UserError, require
from zolit.models.loading import is_masked_lm


class Tuning(ABC):
    """Chooses the weights to train.

    Attributes:
        num_prefix_tokens: Number of trainable keys and values before those of the text; 0 except for prefix tuning.
    """

    num_prefix_tokens = 0

    @abstractmethod
    def apply(self, model: PreTrainedModel) -> nn.Module:
        """Returns the model with its trainable weights chosen. Called once, after loading.

        Loaded weights keep their values.

        Raises:
            UserError: If the model has no such weights.
        """


class Full(Tuning):
    """Trains weights of the model itself.

    Weights that the authors of the model froze stay frozen, such as the biases that route tokens to experts. So do
    weights with integers or floats of 8 bits, which a small step cannot move.

    Args:
        pattern: Regular expression. Weights whose names it does not match anywhere are frozen; the default matches all.
            A pattern that matches frozen weights alone trains them.

    Raises:
        UserError: If the pattern is not a valid regular expression.
    """

    def __init__(self, pattern: str = "") -> None:
        try:
            self._pattern = re.compile(pattern)
        except re.error as error:
            msg = f"model.tuning.pattern: {pattern!r} is not a valid regular expression ({error})"
            raise UserError(msg) from None

    @override
    def apply(self, model: PreTrainedModel) -> nn.Module:
        """Freezes the weights whose names do not match; see ``Tuning.apply``."""
        # A tied weight has several names, and each of them counts.
        found = {p: None for name, p in model.named_parameters(remove_duplicate=False) if self._pattern.search(name)}
        require(bool(found), f"model.tuning.pattern: {self._pattern.pattern!r} matches no weight of the model")
        fine = [parameter for parameter in found if _is_fine(parameter)]
        chosen = [parameter for parameter in fine if parameter.requires_grad]
        if not chosen and self._pattern.pattern:
            chosen = fine
        _warn_of_coarse([parameter for parameter in found if not _is_fine(parameter)], len(found))
        model.requires_grad_(False)
        for parameter in chosen:
            parameter.requires_grad_(True)
        return cast("nn.Module", model)


class LoRA(Tuning):
    """Trains low-rank adapters (Hu et al., arXiv 2106.09685) of peft, in float32.

    The defaults are MeZO's (arXiv 2305.17333).

    Args:
        rank: Rank r of the adapters.
        alpha: Scale of the adapters; their product is multiplied by alpha / r.
        targets: Names of the layers with adapters; null is peft's choice for the architecture, mostly the query and
            value projections.
        seed: Seed of the first factor's initial values; the second factor starts at 0.

    Raises:
        UserError: If the rank is not positive.
    """

    def __init__(self, rank: int = 8, alpha: int = 16, targets: list[str] | None = None, seed: int = 0) -> None:
        require(rank >= 1, f"model.tuning.rank: the rank must be at least 1, not {rank}")
        self._config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets)
        self._seed = seed

    @override
    def apply(self, model: PreTrainedModel) -> nn.Module:
        """Adds the adapters, and freezes all other weights; see ``Tuning.apply``."""
        return _add_peft(model, self._config, self._seed, "model.tuning.targets")


class PrefixTuning(Tuning):
    """Trains keys and values that are prepended in each attention layer (Li and Liang, arXiv 2101.00190), with peft.

    peft initializes them at random; MeZO's code (arXiv 2305.17333) uses the keys and values of real tokens.

    Args:
        tokens: Number of prepended keys and values in each layer.
        seed: Seed of their initial values.

    Raises:
        UserError: If ``tokens`` is less than 1.
    """

    def __init__(self, tokens: int = 5, seed: int = 0) -> None:
        require(tokens >= 1, f"model.tuning.tokens: a prefix needs at least 1 token, not {tokens}")
        self.num_prefix_tokens = tokens
        self._config = PrefixTuningConfig(num_virtual_tokens=tokens)
        self._seed = seed

    @override
    def apply(self, model: PreTrainedModel) -> nn.Module:
        """Adds the prefix, and freezes all other weights; see ``Tuning.apply``."""
        require(
            not is_masked_lm(model.config),
            "model.tuning: a prefix needs a causal language model; use LoRA for a masked one",
        )
        # peft passes the prefix under a name that transformers deprecates.
        warnings.filterwarnings("ignore", message="`past_key_values` is deprecated", category=FutureWarning)
        return _add_peft(model, self._config, self._seed, "model.tuning")


def _add_peft(model: PreTrainedModel, config: PeftConfig, seed: int, option: str) -> nn.Module:
    """Returns the model with the adapters of a peft configuration; their initial values depend on the seed alone."""
    # peft reads an attribute that transformers deprecates.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    # Adapters on tied weights are refused below.
    warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True` and a tied", category=UserWarning)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config.task_type = None if is_masked_lm(model.config) else TaskType.CAUSAL_LM
            with_adapters = get_peft_model(model, config)
    except ValueError as error:
        msg = f"{option}: {' '.join(str(error).split())}"
        raise UserError(msg) from error
    _check_ties(with_adapters, option)
    with_adapters.train(False)
    return cast("nn.Module", with_adapters)


def _check_ties(model: nn.Module, option: str) -> None:
    """Refuses an adapter on one side of a tie: merged into the weight, it would change the other side too."""
    holders: dict[nn.Parameter, list[str]] = {}
    for path, parent in model.named_modules():  # a module that is used several times counts once
        for name, module in parent.named_children():
            for parameter in module.parameters(recurse=False):
                holders.setdefault(parameter, []).append(f"{path}.{name}")
    for module in model.modules():
        base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else None
        for parameter in base.parameters(recurse=False) if base else ():
            if len(sides := holders[parameter]) > 1:
                first, second, *_ = (_plain_name(side) for side in sides)
                raise UserError(
                    f"{option}: {first} and {second} share a weight, so an adapter on one of them cannot be merged; "
                    "leave both out"
                )


def _plain_name(path: str) -> str:
    return path.removeprefix("base_model.model.").removesuffix(".base_layer")


def _is_fine(parameter: nn.Parameter) -> bool:
    """Returns whether a small step can move a weight: it has plain floats of 16 bits or more.

    Quantised weights have integers, floats of 8 bits, or a class of their own that only looks like floats.
    """
    return type(parameter.data) is torch.Tensor and parameter.is_floating_point() and parameter.element_size() > 1


def _warn_of_coarse(coarse: Sequence[nn.Parameter], count: int) -> None:
    if coarse:
        size = sum(parameter.numel() * parameter.element_size() for parameter in coarse) / 2**20
        rank_zero_warn(
            f"model.tuning: {len(coarse)} of {count} weights ({size:.3g} MiB) have integers or floats of 8 bits and "
            "stay frozen; zolit.models.LoRA and the method ZOAct train adapters beside them"
        )
