"""Writes and reads the file of mean Jacobians of a base model, in the format of safetensors.

The format is eight bytes with the length of a header, the header in JSON, and the numbers of all tensors. Reading it
runs no code of the file, and needs no package but torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from zolit.errors import UserError, require
from zolit.optim.feedback.calibration import Measured
from zolit.reason import reason

_PREFIX = 8
_ALIGNMENT = 8
_LARGEST_HEADER = 100_000_000  # as in safetensors


def write_jacobians(file: Path, measured: Measured, model: nn.Module) -> None:
    """Writes the Jacobians of all layers, with hashes of the weights of the model.

    Jacobians are written in bfloat16. Its rounding, .2 % of a number, is far below the error of least squares, and the
    file has half of the size.

    Args:
        file: The file to write.
        measured: The Jacobians, their fits, and the number of tokens.
        model: The base model, without the weights that a tuning adds.
    """
    jacobians = [jacobian.to("cpu", torch.bfloat16) for jacobian in measured.jacobians]
    header: dict[str, Any] = {
        "__metadata__": {
            "weights": json.dumps(hashes_of(model)),
            "fits": json.dumps(measured.fits),
            "tokens": str(measured.tokens),
            "forwards": str(measured.forwards),
        }
    }
    stop = 0
    for layer, jacobian in enumerate(jacobians):
        start, stop = stop, stop + jacobian.nbytes
        header[_name(layer)] = {"dtype": "BF16", "shape": list(jacobian.shape), "data_offsets": [start, stop]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with file.open("wb") as content:
        content.write(len(text).to_bytes(_PREFIX, "little") + text)
        for jacobian in jacobians:
            content.write(_bytes_of(jacobian))


def read_jacobians(file: str, model: nn.Module, layers: int, wanted: Iterable[int], width: int) -> list[Tensor]:
    """Reads the Jacobians of some layers.

    Args:
        file: A file that ``write_jacobians`` has written.
        model: The model. It may have more weights than the base model, such as the adapters of LoRA.
        layers: The number of layers of the model.
        wanted: Indices of the layers to read.
        width: d, the width of the hidden state.

    Returns:
        A_l of each wanted layer, shape (d, d), float32, on the CPU.

    Raises:
        UserError: If the file cannot be read, is no such file, or is of another model.
    """
    advice = "make a file for this model with `zolit calibrate`"
    try:
        with Path(file).open("rb") as content:
            header, begin = _header_of(content)
            shapes = {str(header[name]["shape"]) for name in header if name != "__metadata__"}
            held = len(header) - 1
            hashes = [str(own) for own in json.loads(header["__metadata__"]["weights"])]
            fits = held == layers and shapes == {str([width, width])}
            found = [_tensor(content, begin, header[_name(layer)], width) for layer in wanted] if fits else []
    except OSError as error:
        raise UserError(f"jacobians: {file} cannot be read ({reason(error)}); {advice}") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"jacobians: {file} is no file of `zolit calibrate`, or is damaged; {advice}") from error
    require(
        fits,
        f"jacobians: {file} has {held} layers of shape {', '.join(sorted(shapes))}, and the model has {layers} of width"
        f" {width}; {advice}",
    )
    require(
        _contains(hashes_of(model), hashes),
        f"jacobians: {file} was measured on a model with other weights; {advice}",
    )
    return found


def hashes_of(model: nn.Module) -> list[str]:
    """Returns a hash of the shape and the bytes of each parameter, in the order of the model.

    Floating-point numbers of 16 bits or more are hashed as bfloat16, so that a model that is loaded in float32 and in
    bfloat16 has the same hashes.
    """
    return [_hash_of(parameter.detach()) for parameter in model.parameters()]


def _hash_of(tensor: Tensor) -> str:
    kind = torch.bfloat16 if tensor.is_floating_point() and tensor.element_size() > 1 else tensor.dtype
    digest = blake2b(str(tuple(tensor.shape)).encode(), digest_size=16)
    digest.update(_bytes_of(tensor.to("cpu", kind)))
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data


def _contains(whole: Sequence[str], part: Sequence[str]) -> bool:
    """Returns whether all of a part are in the whole, in this order. Adapters stand between the weights of the base."""
    remaining = iter(whole)
    return bool(part) and all(own in remaining for own in part)


def _name(layer: int) -> str:
    return f"jacobians.{layer}"


def _header_of(content: BinaryIO) -> tuple[dict[str, Any], int]:
    """Returns the header, and where the numbers of the first tensor begin.

    Raises:
        ValueError: If the file does not begin with a header.
    """
    length = int.from_bytes(content.read(_PREFIX), "little")
    if length > _LARGEST_HEADER:
        raise ValueError("the header is too long")
    header = json.loads(content.read(length))
    if not isinstance(header, dict):
        raise ValueError("the header is not a JSON object")
    return header, _PREFIX + length


def _tensor(content: BinaryIO, begin: int, entry: dict[str, Any], width: int) -> Tensor:
    """Reads a matrix of bfloat16.

    Raises:
        ValueError: If the tensor has another type or length, or values that are not finite, or the file ends before.
    """
    start, stop = entry["data_offsets"]
    if entry["dtype"] != "BF16" or stop - start != 2 * width * width:
        raise ValueError("the tensor has another type or length")
    content.seek(begin + start)
    data = bytearray(content.read(stop - start))
    if len(data) != stop - start:
        raise ValueError("the file ends within a tensor")
    found = torch.frombuffer(data, dtype=torch.bfloat16).view(width, width).float()
    if not found.isfinite().all():
        raise ValueError("the tensor has NaN or infinite values")
    return found
