"""16-bit precision leaves float32 what the loaded model keeps in float32."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.conftest import Fit
from zolit import quickstart

SHORT = ("--trainer.max_steps=2", "--trainer.val_check_interval=2")


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
@pytest.mark.parametrize("command", ["fit", "validate"])
def test_types_are_those_of_transformers(zolit: Fit, command: str, precision: str) -> None:
    options = SHORT if command == "fit" else ()
    model = zolit(command, *options, f"--trainer.precision={precision}").model.model
    assert model is not None
    dtype = torch.bfloat16 if precision == "bf16-true" else torch.float16
    plain = AutoModelForCausalLM.from_pretrained(quickstart.MODEL, dtype=dtype)
    kept = {name: buffer.dtype for name, buffer in plain.named_buffers()}
    assert torch.float32 in kept.values()  # the frequencies of the rotary embedding
    assert {name: buffer.dtype for name, buffer in model.named_buffers()} == kept
    assert {weight.dtype for weight in model.parameters()} == {dtype}
    assert all(torch.equal(own, plain.get_buffer(name)) for name, own in model.named_buffers())


@pytest.mark.parametrize(
    "options",
    [("--config=configs/tuning/lora.yaml",), ("--config=configs/method/zo-act.yaml",)],
    ids=["lora", "zo-act"],
)
def test_added_weights_stay_float32(zolit: Fit, options: tuple[str, ...]) -> None:
    cli = zolit("fit", *SHORT, *options, "--trainer.precision=bf16-true", "--model.optimizer.lr=1e-4")
    model = cli.model.model
    assert model is not None
    trained = {weight.dtype for weight in model.parameters() if weight.requires_grad}
    assert trained == {torch.float32}
    assert {weight.dtype for weight in model.parameters() if not weight.requires_grad} == {torch.bfloat16}
