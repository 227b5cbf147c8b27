"""``zolit export``: writes a checkpoint as a plain Hugging Face folder, which needs no zolit to be loaded."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, cast

import torch
import yaml  # type: ignore[import-untyped]  # it has no type hints
from jsonargparse import ArgumentError, ArgumentParser
from peft import PeftModel, PromptLearningConfig
from torch import nn
from transformers import PreTrainedModel

from zolit.cli.moved_names import find_moved, moved_sentence
from zolit.cli.parser import CommandParser
from zolit.cli.trust import check_file, restrict_imports
from zolit.errors import UserError, require
from zolit.files import replacing
from zolit.models.loading import load_language_model, load_tokenizer
from zolit.models.tuning import Full, Tuning
from zolit.optim.modules.adapters import adapted_modules, attach_from_state, merge_coefficients
from zolit.optim.modules.answer_head import attach_probe_from_state, merge_probe, probed_head
from zolit.training.checkpoint_io import check_checkpoint
from zolit.training.restoring import check_weights


def export(ckpt_path: str, output: str, config: str | None = None, trust_remote_code: bool = False) -> None:
    """Writes a checkpoint's weights and tokenizer as a folder for ``from_pretrained``.

    LoRA adapters, ZO-Act's coefficients and a linear probe are merged into the weights. A prefix cannot be merged; its
    folder holds peft's adapter, for ``AutoPeftModelForCausalLM``.

    Args:
        ckpt_path: A checkpoint, such as runs/version_0/checkpoints/best.ckpt.
        output: The folder to write. It must be empty or not exist yet.
        config: The run's config.yaml; null is the file in the run's folder.
        trust_remote_code: Run code that comes with the model. The run's config.yaml cannot allow it.

    The folder appears when it is complete.

    Raises:
        UserError: If the checkpoint or the config does not exist, the checkpoint is damaged or holds code, or the
            folder is not empty.
    """
    require(Path(ckpt_path).exists(), f"ckpt_path: there is no file {ckpt_path}")
    file = Path(config) if config else Path(ckpt_path).parent.parent / "config.yaml"
    require(file.is_file(), f"config: there is no file {file}; name the config.yaml of the run")
    folder = Path(output)
    require(not folder.exists() or not any(folder.iterdir()), f"output: {output} is not empty; name a new folder")
    check_file(file)
    check_checkpoint(ckpt_path)
    options = {**_model_options(file), "trust_remote_code": trust_remote_code}
    if moved := find_moved(str((options.get("tuning") or {}).get("class_path"))):
        raise UserError(moved_sentence(*moved, str(file)))
    model = _with_weights(ckpt_path, options)
    if isinstance(model, PeftModel) and not isinstance(model.peft_config["default"], PromptLearningConfig):
        model = cast("Any", model).merge_and_unload()
    require(
        probed_head(model) is None or not isinstance(model, PeftModel),
        "ckpt_path: the run fitted a linear probe to a model with a prefix, and no folder can hold both",
    )
    if adapted_modules(model):
        merge_coefficients(model)
    merge_probe(model)
    tokenizer = load_tokenizer(options["name_or_path"], options["trust_remote_code"])
    with replacing(folder) as temporary:
        cast("PreTrainedModel", model).save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def _model_options(file: Path) -> dict[str, Any]:
    written = yaml.safe_load(file.read_text(encoding="utf-8"))
    options = written.get("model") if isinstance(written, dict) else None
    if not isinstance(options, dict) or not isinstance(options.get("name_or_path"), str):
        raise UserError(f"config: {file} names no model.name_or_path; name the config.yaml that the run wrote")
    return options


def _with_weights(ckpt_path: str, options: dict[str, Any]) -> nn.Module:
    """Loads a run's model with the weights that its tuning adds, and sets the checkpoint's weights."""
    state = torch.load(ckpt_path, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
    weights = {name.removeprefix("model."): value for name, value in state.items()}
    loaded = load_language_model(
        options["name_or_path"],
        dtype=_type_of(weights),
        attn_implementation=options.get("attn_implementation"),
        trust_remote_code=options["trust_remote_code"],
    )
    model = _tuning(options).apply(loaded)
    attach_from_state(model, weights)
    attach_probe_from_state(model, weights)
    check_weights(weights, model.state_dict())
    model.load_state_dict(weights)
    return model


def _type_of(weights: dict[str, torch.Tensor]) -> torch.dtype:
    """Returns the type of most weights; some stay in float32 beside weights of 16 bits, or are quantised."""
    counts: Counter[torch.dtype] = Counter()
    for weight in weights.values():
        if weight.is_floating_point() and weight.element_size() > 1:
            counts[weight.dtype] += weight.numel()
    return max(counts, key=lambda dtype: counts[dtype], default=torch.float32)


def _tuning(options: dict[str, Any]) -> Tuning:
    restrict_imports()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--tuning", type=Tuning, default=None)
    given = options.get("tuning")
    if given is None:
        return Full()
    try:
        tuning: Tuning = parser.instantiate_classes(parser.parse_object({"tuning": given})).tuning
    except ArgumentError as error:
        raise UserError(f"config: model.tuning is not valid: {' '.join(str(error).split())}") from None
    return tuning


def run(args: list[str]) -> None:
    """Parses the arguments and exports.

    Args:
        args: The arguments after ``zolit export``.
    """
    parser = CommandParser(prog="zolit export", description=f"{export.__doc__}".split("\n", maxsplit=1)[0])
    parser.add_function_arguments(export)
    given = parser.parse_args(args)
    export(**given.as_dict())
    print(f"written: {given.output}")
