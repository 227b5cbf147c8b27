"""The workload: a model, a batch of random tokens, and the losses that a training step computes."""

from __future__ import annotations

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from torch.nn import functional

from zolit.errors import require
from zolit.models.batches import PromptBatch
from zolit.models.language_model import LanguageModel
from zolit.models.loading import load_language_model
from zolit.models.tuning import Full


class Workload:
    """A causal language model and one batch.

    Args:
        name_or_path: Folder or hub id of the model.
        dtype: Type of the weights.
        device: Device of the model.
        batch: Examples in the batch.
        tokens: Tokens of each example, without padding.

    Attributes:
        model: The model, in evaluation mode.
        device: Its device.
        parameters: Number of weights; tied weights count once.
        weight_bytes: Bytes of weights and buffers.

    Raises:
        UserError: If the model cannot be loaded, or has fewer positions than tokens.
    """

    def __init__(self, name_or_path: str, *, dtype: torch.dtype, device: torch.device, batch: int, tokens: int) -> None:
        model = load_language_model(name_or_path, dtype=dtype, attn_implementation=None, trust_remote_code=False)
        limit = getattr(model.config, "max_position_embeddings", tokens)
        require(tokens <= limit, f"tokens: the model has positions for {limit} tokens, not for {tokens}")
        self.model = model.to(device)  # type: ignore[arg-type]  # transformers' wrapper hides torch's overloads
        self.device = device
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.weight_bytes = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
        self.batch = batch
        ids = torch.randint(model.config.vocab_size, (batch, tokens), generator=torch.Generator().manual_seed(0))
        rows = torch.arange(batch)
        made = PromptBatch(ids, torch.ones_like(ids), rows % 2, torch.arange(2), rows, torch.full_like(rows, -1))
        self._batch: PromptBatch = move_data_to_device(made, device)
        self._language = LanguageModel(model, Full())

    @torch.no_grad()
    def inference(self) -> Tensor:
        """Makes one forward as in inference, which stores nothing for gradients."""
        return self.losses()

    def losses(self, copies: int = 1) -> Tensor:
        """Makes one forward as ``ZerothOrderModule`` does: last position's logits, and the loss over two label words.

        Args:
            copies: How often the batch is repeated.

        Returns:
            The cross-entropy of each example, shape (copies * batch,), float32.
        """
        batch = self._batch.repeated(copies)
        logits = self._language.word_logits(batch)[:, batch.candidates].float()
        return functional.cross_entropy(logits, batch.labels, reduction="none")
