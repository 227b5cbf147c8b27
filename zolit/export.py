"""``zolit export``: a checkpoint as a plain Hugging Face folder, which needs no zolit to be opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
import yaml  # type: ignore[import-untyped]  # it has no types of its own
from jsonargparse import ArgumentParser
from peft import PeftModel, PromptLearningConfig
from torch import nn
from transformers import PreTrainedModel

from zolit.adapters import adapted, attach_like, merge
from zolit.errors import require
from zolit.pretrained import load_language_model, load_tokenizer
from zolit.tuning import Full, Tuning


def export(ckpt_path: str, output: str, config: str | None = None) -> None:
    """Writes the weights of a checkpoint as a folder for ``from_pretrained``, with the tokenizer.

    LoRA adapters and ZO-Act's coefficients are added to the weights that they correct. A prefix cannot be; the folder
    then holds peft's adapter, for ``AutoPeftModelForCausalLM``.

    Args:
        ckpt_path: A checkpoint, e.g. runs/version_0/checkpoints/best.ckpt.
        output: The folder to write, which is not there yet or empty.
        config: The run's config.yaml; null is the one in the run's folder.

    Raises:
        UserError: If there is no such checkpoint or config, or the folder holds something.
    """
    require(Path(ckpt_path).is_file(), f"ckpt_path: there is no file {ckpt_path}")
    file = Path(config) if config else Path(ckpt_path).parent.parent / "config.yaml"
    require(file.is_file(), f"config: there is no file {file}; name the config.yaml of the run")
    folder = Path(output)
    require(not folder.exists() or not any(folder.iterdir()), f"output: {output} holds something; name a new folder")
    options = yaml.safe_load(file.read_text(encoding="utf-8"))["model"]
    model = _with_weights(ckpt_path, options)
    if isinstance(model, PeftModel) and not isinstance(model.peft_config["default"], PromptLearningConfig):
        model = cast("Any", model).merge_and_unload()
    if adapted(model):
        merge(model)
    cast("PreTrainedModel", model).save_pretrained(folder)
    load_tokenizer(options["name_or_path"], bool(options.get("trust_remote_code"))).save_pretrained(folder)


def _with_weights(ckpt_path: str, options: dict[str, Any]) -> nn.Module:
    """Loads a run's model, with what its tuning adds, and puts the checkpoint's weights into it."""
    state = torch.load(ckpt_path, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
    weights = {name.removeprefix("model."): value for name, value in state.items()}
    loaded = load_language_model(
        options["name_or_path"],
        dtype=next(iter(weights.values())).dtype,
        attn_implementation=options.get("attn_implementation"),
        trust_remote_code=bool(options.get("trust_remote_code")),
    )
    model = _tuning(options).prepare(loaded)
    attach_like(model, weights)
    model.load_state_dict(weights)
    return model


def _tuning(options: dict[str, Any]) -> Tuning:
    parser = ArgumentParser()
    parser.add_argument("--tuning", type=Tuning, default=None)
    given = options.get("tuning")
    return Full() if given is None else parser.instantiate_classes(parser.parse_object({"tuning": given})).tuning


def run(args: list[str]) -> None:
    """Parses the arguments and exports.

    Args:
        args: What follows ``zolit export``.
    """
    parser = ArgumentParser(prog="zolit export", description=f"{export.__doc__}".split("\n", maxsplit=1)[0])
    parser.add_function_arguments(export)
    given = parser.parse_args(args)
    export(**given.as_dict())
    print(f"written: {given.output}")
