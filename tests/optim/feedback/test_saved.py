"""Files of Jacobians: their format is that of safetensors, and a file of another model is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.helpers.families import build
from zolit import UserError
from zolit.models.tuning import LoRA
from zolit.optim.feedback.calibration import Measured
from zolit.optim.feedback.saved import hashes_of, read_jacobians, write_jacobians

LAYERS, WIDTH = 2, 4


def model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 3), nn.LayerNorm(3)).to(dtype)


def jacobians() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(WIDTH, WIDTH, generator=generator) for _ in range(LAYERS)]


def write(file: Path, of: nn.Module | None = None, matrices: list[Tensor] | None = None) -> str:
    matrices = jacobians() if matrices is None else matrices
    write_jacobians(file, Measured(matrices, [0.5] * len(matrices), 100, 8), of or model())
    return str(file)


def read(file: str, of: nn.Module | None = None, wanted: tuple[int, ...] = (0, 1)) -> list[Tensor]:
    return read_jacobians(file, of or model(), LAYERS, wanted, WIDTH)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = write(tmp_path / "file")
    rounded = [own.bfloat16().float() for own in jacobians()]
    assert all(map(torch.equal, read(file), rounded))
    (last,) = read(file, wanted=(1,))
    assert torch.equal(last, rounded[1])


def test_the_format_is_that_of_safetensors(tmp_path: Path) -> None:
    """The library reads what is written here, and what it writes is read here."""
    file = write(tmp_path / "file")
    with safe_open(file, "pt") as content:
        tensors, metadata = load_file(file), content.metadata()
    assert all(torch.equal(tensors[f"jacobians.{i}"], own.bfloat16()) for i, own in enumerate(jacobians()))
    assert json.loads(metadata["weights"]) == hashes_of(model())
    assert (json.loads(metadata["fits"]), metadata["tokens"], metadata["forwards"]) == ([0.5] * LAYERS, "100", "8")
    save_file(tensors, tmp_path / "again", metadata)
    assert all(map(torch.equal, read(str(tmp_path / "again")), read(file)))


@pytest.mark.parametrize(("first", "second"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_a_model_is_the_same_in_other_precision(tmp_path: Path, first: torch.dtype, second: torch.dtype) -> None:
    assert read(write(tmp_path / "file", model(first)), model(second))


def test_adapters_do_not_matter_and_weights_do(tmp_path: Path) -> None:
    base = build("llama")
    file = write(tmp_path / "file", base)
    adapted = LoRA(rank=2, targets=["down_proj", "q_proj"]).apply(build("llama"))
    assert len(hashes_of(adapted)) > len(hashes_of(base))
    assert read(file, adapted)
    with torch.no_grad():
        next(iter(adapted.parameters()))[0, 0] += 1.0
    with pytest.raises(UserError, match="other weights"):
        read(file, adapted)


@pytest.mark.parametrize("place", ["0.weight", "1.bias"])
def test_a_single_number_makes_another_model(tmp_path: Path, place: str) -> None:
    file, other = write(tmp_path / "file"), model()
    with torch.no_grad():
        other.get_parameter(place).view(-1)[0] += 0.1
    with pytest.raises(UserError, match=r"jacobians: .*file was measured on a model with other weights; make a file"):
        read(file, other)


def test_a_model_with_fewer_weights_is_another_one(tmp_path: Path) -> None:
    file = write(tmp_path / "file")
    with pytest.raises(UserError, match="other weights"):
        read(file, nn.Sequential(model()[0]))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


def with_metadata(metadata: dict[str, str] | None, dtype: torch.dtype = torch.bfloat16) -> Callable[[Path], None]:
    matrices = {f"jacobians.{i}": own.to(dtype) for i, own in enumerate(jacobians())}
    return lambda file: save_file(matrices, file, metadata)


def with_header(header: object) -> Callable[[Path], None]:
    text = json.dumps(header).encode()
    return lambda file: file.write_bytes(len(text).to_bytes(8, "little") + text)


METADATA = {"weights": json.dumps(hashes_of(model()))}
ENTRY = {"dtype": "BF16", "shape": [WIDTH, WIDTH]}

DAMAGED: dict[str, Callable[[Path], object]] = {
    "is empty": lambda file: file.write_bytes(b""),
    "is text": lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:aa\n"),
    "is short": lambda file: file.write_bytes(b"\x10"),
    "has a header that is a list": with_header([1]),
    "has a header without metadata": with_header({"jacobians.0": ENTRY}),
    "has tensors that are numbers": with_header({"__metadata__": METADATA, "jacobians.0": 3}),
    "has a negative place": with_header(
        {"__metadata__": METADATA, **{f"jacobians.{i}": {**ENTRY, "data_offsets": [-900, -868]} for i in (0, 1)}}
    ),
    "has text for a place": with_header(
        {"__metadata__": METADATA, **{f"jacobians.{i}": {**ENTRY, "data_offsets": ["a", "b"]} for i in (0, 1)}}
    ),
    "ends early": cut,
    "has no metadata": with_metadata(None),
    "has other metadata": with_metadata({"format": "pt"}),
    "has weights that are no list": with_metadata({"weights": "7"}),
    "is of float32": with_metadata(METADATA, torch.float32),
    "has a NaN": lambda file: write(file, matrices=[own * torch.nan for own in jacobians()]),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_other_files_are_refused(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    file = write(tmp_path / "file")
    damage(Path(file))
    with pytest.raises(UserError, match=r"jacobians: .*file (is no file of|cannot be read).*zolit calibrate") as caught:
        read(file)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be read \(No such file or directory.*make a file for this model"):
        read(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("matrices", "sentence"),
    [
        ([torch.zeros(WIDTH, WIDTH)] * 3, r"has 3 layers of shape \[4, 4\], and the model has 2 of width 4"),
        ([torch.zeros(5, 5)] * LAYERS, r"has 2 layers of shape \[5, 5\]"),
        ([torch.zeros(4, 4), torch.zeros(5, 5)], r"of shape \[4, 4\], \[5, 5\]"),
    ],
)
def test_other_layers_are_refused(tmp_path: Path, matrices: list[Tensor], sentence: str) -> None:
    file = write(tmp_path / "file", matrices=matrices)
    with pytest.raises(UserError, match=sentence):
        read(file)
