"""Replaces the logits of a few words at the output head of a model, and leaves its weights unchanged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zolit.errors import UserError, require
from zolit.optim.precision import without_autocast

PROBE, WORDS = "zo_probe", "zo_probe_words"
_KNOWN = "zo_label_words"


def tell_words(model: nn.Module, words: Tensor | None) -> None:
    """Tells a model the token ids of the label words of its task. Called before the optimizer is made.

    Args:
        model: The model.
        words: Shape (classes,), int64; None if the answers of the task are not label words of one token each.
    """
    setattr(model, _KNOWN, words)


def attach_probe(model: nn.Module, words: Sequence[int] | None = None) -> None:
    """Freezes a model, and gives its output head other rows for the label words. Called when the optimizer is made.

    The rows P, shape (classes, d), are a trainable parameter in float32. They begin as the rows of the head, so that
    the model answers as before. If the head has a bias, P has one more column for it. The logits of the words become
    P·h for an input h of the head; the weight of the head is never written, and may be that of the embedding. P and
    the token ids of the words are part of the ``state_dict`` of the model. A head that has P already keeps it.

    Args:
        model: The model.
        words: Token ids of the label words; None takes those of ``tell_words``.

    Raises:
        UserError: If the words or the head are not known, if the head is quantised, or if P is for other words.
    """
    told: Tensor | None = getattr(model, _KNOWN, None)
    chosen = told if words is None else torch.tensor(list(words))
    if chosen is None:
        raise UserError(
            "model.optimizer: LinearProbe needs a task whose answers are the same label words for every record, of one "
            "token each; the answers of this task are others, so use another method, or other data.task.label_words"
        )
    model.requires_grad_(False)
    head = _head_of(model)
    if hasattr(head, PROBE):
        check_words(head.state_dict(), chosen)
        getattr(head, PROBE).requires_grad_(True)
        return
    require(
        head.weight.is_floating_point() and head.weight.element_size() > 1,
        f"model.optimizer: the output head is quantised ({head.weight.dtype}), and LinearProbe begins from its rows; "
        "load it in 16 or 32 bits",
    )
    chosen = chosen.to(head.weight.device)
    parts = [head.weight[chosen], *([] if head.bias is None else [head.bias[chosen].unsqueeze(1)])]
    _add(head, torch.cat(parts, dim=1).float(), chosen)


def attach_probe_from_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Adds P to a model if a ``state_dict`` contains it. Called before the ``state_dict`` is loaded."""
    modules = dict(model.named_modules())
    for name, value in state.items():
        path, _, kind = name.rpartition(".")
        if kind == PROBE and path in modules and not hasattr(modules[path], PROBE):
            head: Any = modules[path]
            device = head.weight.device
            _add(head, torch.zeros_like(value, device=device), state[f"{path}.{WORDS}"].to(device))


def check_words(state: Mapping[str, Tensor], words: Tensor | None) -> None:
    """Checks that P of a ``state_dict``, if it has one, is for the label words of the task. Called before it is used.

    Args:
        state: The ``state_dict`` of a model, or of a module that contains it.
        words: Token ids of the label words; None if the task has none.

    Raises:
        UserError: If P is for other words, whose logits cannot be compared with those of the model.
    """
    for name, found in state.items():
        if name.rpartition(".")[2] == WORDS:
            require(
                words is not None and found.tolist() == words.tolist(),
                f"ckpt_path: the linear probe of the checkpoint is for the label words with the tokens "
                f"{found.tolist()}, and this task has other ones; use the task and the label words of its run",
            )


def _head_of(model: nn.Module) -> Any:
    plain: Any = model
    head = plain.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None:
        raise UserError("model.optimizer: LinearProbe needs a model that says which module is its output head")
    return head


def _add(head: Any, rows: Tensor, words: Tensor) -> None:
    head.register_parameter(PROBE, nn.Parameter(rows))
    head.register_buffer(WORDS, words)
    head.register_forward_hook(_answer)


def _answer(head: Any, args: tuple[Tensor], output: Tensor) -> Tensor:
    with without_autocast(output.device):
        logits = word_logits(args[0].float(), head.zo_probe)
        return output.index_copy_(-1, head.zo_probe_words, logits.to(output.dtype))


def word_logits(inputs: Tensor, rows: Tensor) -> Tensor:
    """Returns the logits of the label words.

    Args:
        inputs: h, the input of the head, shape (..., d).
        rows: P, shape (classes, d), or (classes, d + 1) with a bias.

    Returns:
        Shape (..., classes).
    """
    width = inputs.shape[-1]
    return nn.functional.linear(inputs, rows[:, :width], rows[:, width] if rows.shape[1] > width else None)


def probed_head(model: nn.Module) -> Any:
    """Returns the output head that has P; None if the model has none."""
    return next((module for module in model.modules() if hasattr(module, PROBE)), None)


@contextmanager
def head_inputs(head: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the inputs of the head, one tensor for each of its calls, for the time of the context."""
    found: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, args: found.append(args[0].detach()))
    try:
        yield found
    finally:
        hook.remove()


@torch.no_grad()
def merge_probe(model: nn.Module) -> None:
    """Writes P into the head. Called for an export.

    A head that shares its weight with the embedding gets a weight of its own, and the configuration of the model says
    so.
    """
    head = probed_head(model)
    if head is None:
        return
    plain: Any = model
    if any(head.weight is module.weight for module in model.modules() if isinstance(module, nn.Embedding)):
        head.weight = nn.Parameter(head.weight.clone(), requires_grad=False)
        plain.config.tie_word_embeddings = False
    width = head.weight.shape[1]
    head.weight[head.zo_probe_words] = head.zo_probe[:, :width].to(head.weight.dtype)
    if head.bias is not None:
        head.bias[head.zo_probe_words] = head.zo_probe[:, width].to(head.bias.dtype)
    del head._parameters[PROBE], head._buffers[WORDS]
    for key, hook in list(head._forward_hooks.items()):
        if hook is _answer:
            del head._forward_hooks[key]
