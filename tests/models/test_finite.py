from __future__ import annotations

import pytest
import torch

from zolit.models.finite import first_not_finite

TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_the_first_tensor_is_named(dtype: torch.dtype, value: float) -> None:
    whole = torch.randn(3, 5).to(dtype)
    broken = torch.ones(3, 5)
    broken[2, 1] = value
    tensors = [("a", whole), ("b", broken.to(dtype).T), ("c", broken.to(dtype))]
    assert first_not_finite(tensors) == "b"
    assert first_not_finite(tensors[:1]) is None


def test_tensors_without_values_or_fractions_are_skipped() -> None:
    skipped = [torch.empty(3, device="meta"), torch.empty(0), torch.ones(2, dtype=torch.int64), torch.ones(2).bool()]
    skipped.append(torch.ones(2, dtype=torch.complex64))
    assert first_not_finite((str(tensor.dtype), tensor) for tensor in skipped) is None
    largest = torch.finfo(torch.float32).max
    assert first_not_finite([("large", torch.tensor([largest, -largest]))]) is None
