"""Every method tunes LoRA's adapters through peft, and leaves the model's own weights alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.helpers.battery import FEEDBACK, METHODS, made
from tests.helpers.tiny import same, weights_of
from zolit.models.tuning import LoRA

SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 23}


@pytest.mark.parametrize("name", METHODS)
def test_adapters_move_and_nothing_else(name: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(intermediate_size=24, num_key_value_heads=2, **SIZES))
    # Queries and values, peft's choice, are not added to the hidden state.
    targets = ["o_proj", "down_proj"] if name in FEEDBACK else None
    tuned = LoRA(rank=2, targets=targets).apply(model.bfloat16())
    ids = torch.arange(40).view(8, 5) * 7 % 23

    def losses() -> Tensor:
        logits = tuned(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -1].float()
        return torch.nn.functional.cross_entropy(logits, ids[:, 0], reduction="none")

    optimizer = made(name, tuned, lr=1e-2)
    before = weights_of(tuned)
    for _ in range(3):
        optimizer.step(losses)
    after = weights_of(tuned)
    trained = {weight.name for block in optimizer.blocks for weight in block.weights}
    assert trained
    assert all("lora" in weight or "zo_coefficients" in weight for weight in trained)
    assert same({w: v for w, v in after.items() if w not in trained}, {w: before[w] for w in after if w not in trained})
    assert not same(after, before)
