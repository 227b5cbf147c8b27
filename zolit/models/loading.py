"""Loads language models and tokenizers from a folder or the hub; errors are one sentence."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from zolit.errors import UserError

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin")


def check_model_path(name_or_path: str) -> None:
    """Checks the path of a model before anything is loaded.

    Args:
        name_or_path: A folder, or the id of a model on the hub.

    Raises:
        UserError: If a folder has no model or no weights, or the path is no hub id and no existing folder.
    """
    folder = Path(name_or_path)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            msg = f"model.name_or_path: the folder {name_or_path} has no config.json; name a Hugging Face model folder"
            raise UserError(msg)
        if not any(any(folder.glob(pattern)) for pattern in _WEIGHTS):
            msg = f"model.name_or_path: the folder {name_or_path} has a config.json but no weights (*.safetensors)"
            raise UserError(msg)
    elif name_or_path.startswith((".", "~", os.sep)) or name_or_path.count("/") > 1:
        msg = f"model.name_or_path: there is no folder {name_or_path}; give a model folder or a hub id such as org/name"
        raise UserError(msg)


def is_masked_lm(config: PretrainedConfig) -> bool:
    """Returns whether a model is a masked language model (RoBERTa) rather than a causal one."""
    return any(name.endswith("ForMaskedLM") for name in config.architectures or ())


def load_language_model(
    name_or_path: str, *, dtype: torch.dtype, attn_implementation: str | None, trust_remote_code: bool
) -> PreTrainedModel:
    """Loads a causal or masked language model, as its configuration says.

    The model is in evaluation mode: dropout would make the two losses of a step incomparable.

    Args:
        name_or_path: A folder, or the id of a model on the hub.
        dtype: Type of the weights. Weights that were saved in another type are converted.
        attn_implementation: Attention of transformers, such as sdpa or eager; None lets transformers choose.
        trust_remote_code: Run code that comes with the model.

    Raises:
        UserError: If the model cannot be loaded.
    """
    try:
        # Load on the CPU and not on the default device: on other devices, transformers requires accelerate.
        config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
        kind = AutoModelForMaskedLM if is_masked_lm(config) else AutoModelForCausalLM
        with torch.device("cpu"):
            model = kind.from_pretrained(
                name_or_path, dtype=dtype, attn_implementation=attn_implementation, trust_remote_code=trust_remote_code
            )
    except (OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())
        msg = f"model.name_or_path: {name_or_path} cannot be loaded as a language model: {reason}"
        raise UserError(msg) from error
    assert isinstance(model, PreTrainedModel)
    model.train(False)
    return model


def load_tokenizer(name_or_path: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a model.

    Args:
        name_or_path: A folder, or the id of a model on the hub.
        trust_remote_code: Run code that comes with the tokenizer.

    Raises:
        UserError: If the tokenizer cannot be loaded.
    """
    try:
        return AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        msg = f"cannot load a tokenizer from {name_or_path}: {reason}"
        raise UserError(msg) from error
