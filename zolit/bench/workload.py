"""What is measured: a model, a batch of random tokens, and the losses that a training step would form of them."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor
from torch.nn import functional

from zolit.errors import require
from zolit.pretrained import load_language_model


class Workload:
    """A causal language model and one batch.

    Args:
        name_or_path: Folder or hub id of the model.
        dtype: Type of the weights.
        device: Where to.
        batch: Examples.
        tokens: Tokens of each example; none is padding.

    Attributes:
        model: The model, in evaluation mode.
        device: Where it is.
        parameters: How many weights it has, tied ones counted once.
        weight_bytes: What they and the buffers take.

    Raises:
        UserError: If the model cannot be loaded, or has no place for so many tokens.
    """

    def __init__(self, name_or_path: str, *, dtype: torch.dtype, device: torch.device, batch: int, tokens: int) -> None:
        model = load_language_model(name_or_path, dtype=dtype, attn_implementation=None, trust_remote_code=False)
        places = getattr(model.config, "max_position_embeddings", tokens)
        require(tokens <= places, f"tokens: the model has places for {places} tokens, not for {tokens}")
        self.model = model.to(device)  # type: ignore[arg-type]  # transformers' wrapper hides torch's overloads
        self.device = device
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.weight_bytes = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
        self.batch = batch
        shape, generator = (batch, tokens), torch.Generator().manual_seed(0)
        self._ids = torch.randint(model.config.vocab_size, shape, generator=generator).to(device)
        self._labels = (torch.arange(batch) % 2).to(device)
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    @torch.no_grad()
    def inference(self) -> Tensor:
        """Makes one forward as inference does: nothing is kept for gradients."""
        return self.losses()

    def losses(self, copies: int = 1) -> Tensor:
        """Makes one forward, as ``ZerothOrderModule`` does: logits of the last place, the loss over two label words.

        Args:
            copies: How often the batch is repeated.

        Returns:
            The cross-entropy of each example, shape (copies * batch,), float32.
        """
        ids, labels = self._ids.repeat(copies, 1), self._labels.repeat(copies)
        mask = torch.ones_like(ids)
        positions = {"position_ids": mask.cumsum(1) - 1} if self._takes_positions else {}
        output = self.model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=1, **positions)
        return functional.cross_entropy(output.logits[:, -1, :2].float(), labels, reduction="none")
