"""The loss of an example on real architectures, which padding, micro-batches and batch order do not change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from zolit import quickstart
from zolit.data.datamodule import PromptedData
from zolit.models.batches import Batch, micro_batches
from zolit.tasks.classification import Classification
from zolit.training.module import ZerothOrderModule

SIZES = {"vocab_size": 1000, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=64, num_key_value_heads=2)),
    "llama, tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=64, tie_word_embeddings=True)),
    "opt": lambda: OPTForCausalLM(OPTConfig(**SIZES, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=128)),
}


@pytest.fixture(params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    MODELS[request.param]().save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(quickstart.MODEL).save_pretrained(tmp_path)
    return tmp_path


def module_and_batch(folder: Path, examples: int, template: str) -> tuple[ZerothOrderModule, Any]:
    """Returns a module, and a batch of reviews for it."""
    module = ZerothOrderModule(str(folder))
    module.configure_model()
    data = PromptedData(
        name_or_path=str(folder),
        train_file=str(quickstart.TRAIN),
        validation_file=str(quickstart.VALIDATION),
        validation_examples=examples,
        eval_batch_size=examples,
        task=Classification(template),
    )
    data.setup("validate")
    (batch,) = data.val_dataloader()
    return module, batch


def test_an_examples_loss_does_not_depend_on_its_batch(folder: Path) -> None:
    module, batch = module_and_batch(folder, 24, "{sentence} {sentence} It was")
    lengths = batch.attention_mask.sum(1)
    assert lengths.min() < lengths.max()
    together = module.objective(batch)
    assert together.shape == (24,)
    assert together.std() > 1e-3
    assert module.model is not None
    for row, length in enumerate(lengths.tolist()):
        with torch.no_grad():
            logits = module.model(batch.input_ids[row : row + 1, -length:]).logits[0, -1, batch.candidates]
        alone = torch.nn.functional.cross_entropy(logits[None], batch.labels[row : row + 1])
        assert float(together[row]) == pytest.approx(float(alone), abs=1e-5)

    per_example = {
        name: getattr(batch, name).flip(0) for name in batch._fields if name not in ("candidates", "content_free")
    }
    turned = batch._replace(**per_example)
    torch.testing.assert_close(module.objective(turned).flip(0), together, atol=1e-5, rtol=1e-5)
    module._micro_batch_size = 5
    torch.testing.assert_close(module.objective(batch), together, atol=1e-5, rtol=1e-5)


def saved_bytes(module: ZerothOrderModule, batch: Batch) -> tuple[int, list[torch.Tensor]]:
    """Returns the bytes that the forward of a gradient keeps for its backward pass, and the gradients."""
    kept = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    assert module.model is not None
    parts = list(micro_batches(batch, module._micro_batch_size))
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = module._losses(parts).mean()
    return kept, list(torch.autograd.grad(loss, [*module.model.parameters()], allow_unused=True))


def test_micro_batches_save_activations_of_a_backward_pass(folder: Path) -> None:
    module, batch = module_and_batch(folder, 12, "{sentence} It was")
    whole, expected = saved_bytes(module, batch)
    module._micro_batch_size = 5
    kept, gradients = saved_bytes(module, batch)
    assert kept < whole / 50
    torch.testing.assert_close(gradients, expected, atol=1e-5, rtol=1e-4)
