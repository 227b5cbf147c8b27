"""Computes the loss of each token of a text without the logits of the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial, wraps
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

_MOST = 1 << 22
"""Largest number of logits that are converted to float32 at once."""
_ROUNDING, _ROUNDING_OF_16_BITS = 1e-3, 0.05
"""Difference of a token's loss that arithmetic explains, for losses up to 1, and as a share of larger ones."""


class LogitPieces:
    """Applies the head of a causal language model to a few positions at a time.

    The logits of 16 texts of 128 tokens over 50 thousand words are 100 million numbers. The body of a model gives a
    hidden state for each position, and the head turns these states into logits. Heads differ: some have a bias, a soft
    cap or a scale. So the model's own forward makes the logits. It is called again for each piece of the columns. In
    these calls the body does not compute, but returns the hidden states that it has computed for the whole batch.

    The logits of a piece have at most half as many numbers as the weight of the head. With gradients they have at most
    a sixteenth, because logits, log-probabilities and gradients are there at once. All this happens within one call
    of the model. Each forward of a piece gets the columns of the mask that belong to the piece.

    With gradients, logits are not kept. If no weight of the head is trained, the gradient of each token's loss by its
    hidden state is computed with the loss, and kept in place of the logits. Else a backward pass computes the logits of
    a piece again.

    Until ``check`` was called, and if it fails, the logits are those of the whole batch.

    Args:
        model: The model, without the modules of peft around it.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._body: nn.Module | None = None
        self.is_checked = False

    def token_losses(
        self, whole: Callable[[], Tensor], inputs: Mapping[str, Tensor], targets: Tensor, width: int | None = None
    ) -> Tensor:
        """Returns the loss of each target token, shape of ``targets``, float32.

        Args:
            whole: Calls the model with all columns, and returns its logits.
            inputs: The arguments of the model's forward, by name, each of shape (rows, tokens).
            targets: The token that follows each position, shape (rows, tokens), int64.
            width: Columns of a piece; None for as many as the size of the hidden states allows.
        """
        body, found = self._body, list[Tensor]()
        if body is None:
            return _losses(whole(), targets)
        forward = body.forward

        @wraps(forward)
        def in_pieces(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            rows, _, size = output[0].shape
            share = 16 if torch.is_grad_enabled() else 2
            *others, last = _columns(targets.shape[1], width or max(1, size // share // rows))
            for columns in others:
                piece = (output, output[0][:, columns], _cut(inputs, columns), targets[:, columns])
                if not torch.is_grad_enabled():
                    found.append(self._losses_of_piece(*piece))
                elif self._trains_head(body):
                    again = checkpoint(self._losses_of_piece, *piece, use_reentrant=False, preserve_rng_state=False)
                    found.append(again)
                else:
                    losses_of = partial(self._losses_of_piece, output)
                    found.append(_LossesWithSlopes.apply(losses_of, *piece[1:]))  # type: ignore[no-untyped-call]  # in torch
            if not others:
                return output
            # The model itself goes on with the last piece. Who follows its calls learns the columns from this one.
            with _answering(body, _with_states(output, output[0][:, last])):
                return body(**_cut(inputs, last))

        with _replaced(body, in_pieces):
            logits = whole()
        return torch.cat([*found, _losses(logits, targets[:, -logits.shape[1] :])], dim=1)

    def _trains_head(self, body: nn.Module) -> bool:
        inside = set(body.modules())
        after = (module for module in self._model.modules() if module not in inside)
        return any(weight.requires_grad for module in after for weight in module.parameters(recurse=False))

    def _losses_of_piece(self, output: Any, states: Tensor, inputs: dict[str, Tensor], targets: Tensor) -> Tensor:
        assert self._body is not None
        with _answering(self._body, _with_states(output, states)):
            return _losses(self._model.forward(**inputs).logits, targets)

    @torch.no_grad()
    def check(self, whole: Callable[[], Tensor], inputs: Mapping[str, Tensor], targets: Tensor) -> None:
        """Finds the body, and compares pieces with whole logits. Called once, with a few tokens, outside of a step.

        If they differ, or the model has no body of its own, logits stay whole, and a warning says so.

        Args:
            whole: See ``token_losses``.
            inputs: See ``token_losses``.
            targets: See ``token_losses``.
        """
        self.is_checked = True
        called: list[nn.Module] = []
        with ExitStack() as hooks:
            for body in _possible_bodies(self._model):
                hooks.callback(body.register_forward_pre_hook(lambda module, _: called.append(module)).remove)
            expected = _losses(whole(), targets)
        if called:
            self._body = called[0]
            with suppress(Exception):  # a forward that needs more than the states of a piece raises anything
                found = self.token_losses(whole, inputs, targets, width=3)
                weight = next(self._model.parameters())
                is_wide = weight.dtype.itemsize > 2 and not torch.is_autocast_enabled(weight.device.type)
                allowed = _ROUNDING if is_wide else _ROUNDING_OF_16_BITS
                if bool(((found - expected).abs() <= allowed * expected.clamp(min=1.0)).all()):
                    return
            self._body = None
        rank_zero_warn(
            f"model: the logits of {type(self._model).__name__} cannot be computed in pieces, so those of a whole "
            "batch take memory at once; model.micro_batch_size and data.eval_batch_size make a batch smaller"
        )


class _LossesWithSlopes(torch.autograd.Function):
    """Computes the losses of a piece, and in the same pass their gradients by the hidden states of their tokens.

    The loss of a token depends on no other token's state, so one backward pass of the sum gives all gradients.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, losses_of: Callable[..., Tensor], states: Tensor, inputs: dict[str, Tensor], targets: Tensor
    ) -> Tensor:
        # A checkpoint around the forward must not keep this graph, or it would compute the whole forward again.
        with torch.enable_grad(), saved_tensors_hooks(_itself, _itself):
            leaf = states.detach().requires_grad_()
            losses = losses_of(leaf, inputs, targets)
            (slopes,) = torch.autograd.grad(losses.sum(), leaf)
        ctx.save_for_backward(slopes)
        return losses.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None, None]:
        (slopes,) = ctx.saved_tensors
        return None, gradient[..., None] * slopes, None, None


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _possible_bodies(model: PreTrainedModel) -> set[nn.Module]:
    """Returns the modules that may be the body: what transformers calls base model and decoder."""
    found = {model.base_model}
    with suppress(Exception):  # transformers does not know the decoder of some classes
        found.add(model.get_decoder())  # type: ignore[no-untyped-call]  # untyped there
    return found - {model}


def _columns(tokens: int, width: int) -> list[slice]:
    return [slice(start, min(start + width, tokens)) for start in range(0, tokens, width)]


def _cut(inputs: Mapping[str, Tensor], columns: slice) -> dict[str, Tensor]:
    return {name: tensor[:, columns] for name, tensor in inputs.items()}


def _with_states(output: Any, states: Tensor) -> Any:
    """Returns the output of a body with other hidden states."""
    return (states, *output[1:]) if isinstance(output, tuple) else replace(output, last_hidden_state=states)


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns the cross-entropy of each token, shape of ``targets``, float32. Few logits are float32 at a time."""
    size = max(1, _MOST // logits.shape[-1])
    parts = zip(torch.split(logits.flatten(0, 1), size), torch.split(targets.flatten(), size), strict=True)
    losses = [functional.cross_entropy(own.float(), tokens, reduction="none") for own, tokens in parts]
    return torch.cat(losses).view(targets.shape)


def _answering(body: nn.Module, output: Any) -> Any:
    """Lets a body return an output without computing, for the time of the context."""
    return _replaced(body, wraps(body.forward)(lambda *_, **__: output))


@contextmanager
def _replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replaces the forward of a module, for the time of the context."""
    before = vars(module).get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before
