"""Loads language models and tokenizers from a folder or the hub; errors are one sentence."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from logging import LogRecord, getLogger
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging

from zolit.errors import UserError
from zolit.models.finite import first_not_finite
from zolit.reason import blame, is_folder, panics_as_errors, read_json_object

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin")
_POSITIONS_AFTER_PADDING = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "roberta-prelayernorm")
"""Types of models whose first position comes after the id of the padding token."""
_CAUSAL = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())


def check_model_path(name_or_path: str) -> None:
    """Checks the path of a model before anything is loaded.

    Args:
        name_or_path: A folder, or the id of a model on the hub.

    Raises:
        UserError: If a folder has no model, no weights, or an adapter, or the path is no hub id and no existing folder.
    """
    folder = Path(name_or_path)
    if is_folder(name_or_path):
        if (folder / "adapter_config.json").is_file():
            raise UserError(_adapter_sentence(name_or_path))
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
    return any(name.endswith("ForMaskedLM") for name in _architectures(config))


def context_of(config: PretrainedConfig) -> int | None:
    """Returns how many tokens a text may have; None if the configuration does not say."""
    context: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context is not None and config.model_type in _POSITIONS_AFTER_PADDING:
        return context - 1 - (config.pad_token_id or 0)
    return context


def load_config(name_or_path: str, trust_remote_code: bool) -> PretrainedConfig:
    """Loads the configuration of a language model.

    Args:
        name_or_path: A folder, or the id of a model on the hub.
        trust_remote_code: Run code that comes with the model.

    Raises:
        UserError: If config.json cannot be read, or is that of a model without the head of a language model.
    """
    try:
        config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
        assert isinstance(config, PretrainedConfig)
    except Exception as error:  # transformers raises anything for the file of a stranger
        why = blame(name_or_path, error, {"config.json": read_json_object})
        raise UserError(f"model.name_or_path: the config.json of {name_or_path} cannot be read: {why}") from error
    names = _architectures(config)
    own_code = trust_remote_code and hasattr(config, "auto_map")  # such as ChatGLMModel, which has a head
    if names and not own_code and not any(_is_language_model(name) for name in names):
        raise UserError(
            f"model.name_or_path: the config.json of {name_or_path} names {names[0]}, which is not a causal or masked"
            " language model with its head; name a model such as LlamaForCausalLM or RobertaForMaskedLM"
        )
    return config


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
        UserError: If the model cannot be loaded, or weights are missing, have other shapes or are not finite.
    """
    config = load_config(name_or_path, trust_remote_code)
    kind = AutoModelForMaskedLM if is_masked_lm(config) else AutoModelForCausalLM
    try:
        # Load on the CPU and not on the default device: on other devices, transformers requires accelerate.
        with _without_report(name_or_path), torch.device("cpu"):
            loaded: Any = kind.from_pretrained(
                name_or_path,
                dtype=dtype,
                attn_implementation=attn_implementation,
                trust_remote_code=trust_remote_code,
                ignore_mismatched_sizes=True,  # the report names them, and they are refused below
                output_loading_info=True,
            )
        model, report = loaded
        assert isinstance(model, PreTrainedModel)
    except Exception as error:  # transformers raises anything for the file of a stranger
        checks = {"*.index.json": read_json_object, "*.safetensors": _open_safetensors, "*.bin": _open_pickle}
        why = blame(name_or_path, error, checks)
        raise UserError(f"model.name_or_path: {name_or_path} cannot be loaded as a language model: {why}") from error
    _check_weights(name_or_path, model, report)
    _check_causal(name_or_path, model)
    _freeze_as_built(model)
    model.train(False)
    return model


def load_tokenizer(name_or_path: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a model.

    Args:
        name_or_path: A folder, or the id of a model on the hub.
        trust_remote_code: Run code that comes with the tokenizer.

    Raises:
        UserError: If the tokenizer cannot be loaded, or the model's config.json, which transformers reads for it.
    """
    load_config(name_or_path, trust_remote_code)
    try:
        with panics_as_errors():
            return AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises anything for the file of a stranger
        why = blame(name_or_path, error, {"*token*.json": read_json_object, "vocab.json": read_json_object})
        raise UserError(f"cannot load a tokenizer from {name_or_path}: {why}") from error


def _freeze_as_built(model: PreTrainedModel) -> None:
    """Freezes what the authors of a model freeze when they build it; transformers forgets this as it loads weights."""
    with torch.device("meta"):
        built = type(model)(deepcopy(model.config))
    frozen = {name for name, parameter in built.named_parameters() if not parameter.requires_grad}
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)


def _check_weights(name_or_path: str, model: PreTrainedModel, report: dict[str, Any]) -> None:
    """Refuses random weights: transformers draws those that a file lacks or has in another shape."""
    where = f"model.name_or_path: {name_or_path}"
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UserError(_adapter_sentence(name_or_path))
    if wrong := sorted(report["mismatched_keys"]):
        _, saved, needed = wrong[0]
        raise UserError(
            f"{where} has {_several([name for name, *_ in wrong])} in another shape than config.json says:"
            f" {tuple(saved)} instead of {tuple(needed)}"
        )
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"{where} lacks {_several(missing)}, which {type(model).__name__} needs; name a model with all of its"
            " weights"
        )
    if unused := sorted(report["unexpected_keys"]):
        rank_zero_warn(
            f"{where} has {_several(unused)} for which {type(model).__name__} has no place as config.json describes it;"
            " the run does without"
        )
    if report["error_msgs"]:
        raise UserError(f"{where} cannot be loaded: {str(report['error_msgs'][0]).splitlines()[0][:200]}")
    if name := first_not_finite(model.named_parameters()):
        raise UserError(
            f"{where} has NaN or infinite values in the weight {name}, as {model.dtype}; it cannot be trained"
        )
    if not any(weight.any() for weight in model.parameters() if weight.ndim > 1):
        raise UserError(f"{where} has only zeros as weights; its file of weights is damaged")


def _check_causal(name_or_path: str, model: PreTrainedModel) -> None:
    """Refuses an encoder with the head of a causal model, unless it hides later tokens."""
    own = model.config
    is_causal = getattr(own, "is_decoder", False) or getattr(own, "causal", False) or is_masked_lm(own)
    if own.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not is_causal:
        raise UserError(
            f"model.name_or_path: {name_or_path} is a {type(model).__name__} whose config.json lacks is_decoder: true,"
            " so that each token sees the later ones; name a causal model, or the model with its head for masked tokens"
        )


def _adapter_sentence(name_or_path: str) -> str:
    return (
        f"model.name_or_path: {name_or_path} has an adapter of peft (adapter_config.json); merge it into its model with"
        " merge_and_unload, and name the folder of the merged model"
    )


def _several(names: Sequence[str]) -> str:
    return f"the weight {names[0]}" if len(names) == 1 else f"{len(names)} weights such as {names[0]}"


def _architectures(config: PretrainedConfig) -> list[str]:
    """Returns the names of the classes that a model was saved as; a file may have anything in their place."""
    names = config.architectures
    return [str(name) for name in names] if isinstance(names, list) else []


def _is_language_model(name: str) -> bool:
    return name.endswith(("ForCausalLM", "LMHeadModel", "ForMaskedLM")) or name in _CAUSAL


def _open_safetensors(file: Path) -> None:
    with safe_open(file, "pt"):
        pass


def _open_pickle(file: Path) -> None:
    torch.load(file, map_location="meta", weights_only=True)


@contextmanager
def _without_report(name_or_path: str) -> Iterator[None]:
    """Hides the table of missing weights that transformers logs, and the bar of a folder; a hub id shows its download.

    What matters of the table becomes one sentence, which nothing should bury.
    """
    source, is_shown = getLogger("transformers.modeling_utils"), logging.is_progress_bar_enabled()
    source.addFilter(_is_no_report)
    if is_shown and is_folder(name_or_path):
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # untyped there
    try:
        yield
    finally:
        source.removeFilter(_is_no_report)
        if is_shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # untyped there


def _is_no_report(record: LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()
