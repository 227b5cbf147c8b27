"""Refuses weights that share memory under two names without being one parameter."""

from __future__ import annotations

from torch import Tensor, nn

from zolit.errors import require


def check_sharing(model: nn.Module) -> None:
    """Checks that no trained weight lies in the memory of another tensor. Called once, before the weights are listed.

    A parameter that several modules hold is one weight, and fine. Two tensors over one memory are not: a probe that
    replaces one of them leaves the other as it was, and a step would move the memory twice.

    Args:
        model: The model, with the parameters to train requiring a gradient.

    Raises:
        UserError: If a trained parameter overlaps with another parameter or buffer.
    """
    tensors: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    spans = sorted(
        (tensor.data_ptr(), name)
        for name, tensor in tensors.items()
        if type(tensor.data) is Tensor and not tensor.is_meta and tensor.numel()
    )
    end, holder = 0, ""
    for start, name in spans:
        if start < end:
            require(
                not (tensors[name].requires_grad or tensors[holder].requires_grad),
                f"the weights {holder} and {name} share memory but are two parameters; make them one parameter, as "
                "`tie_weights` of transformers does, or freeze both",
            )
        if (stop := start + _extent(tensors[name])) > end:
            end, holder = stop, name


def _extent(tensor: Tensor) -> int:
    """Returns the number of bytes from the first element of a tensor to its last one, gaps included."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()
