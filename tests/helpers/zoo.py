"""A model that reads its weights in every way that modules have."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from zolit.optim.perturbation.base import Perturbation
from zolit.optim.perturbation.gaussian import Gaussian
from zolit.optim.perturbation.gaussian_pool import GaussianPool
from zolit.optim.perturbation.rademacher import Rademacher


class Zoo(nn.Module):
    """A model that reads weights in every way that modules have. Each output depends on its own example alone."""

    def __init__(self, batch_first: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 8, padding_idx=0)
        self.places = nn.Embedding(6, 8)
        self.norm = nn.LayerNorm(8)
        self.scale = nn.Parameter(torch.ones(8))
        # Both transpose inside: the copies of a repeated batch do not lie along the first dimension there.
        self.attention = None if batch_first else nn.MultiheadAttention(8, 2, batch_first=True)
        self.recurrent = None if batch_first else nn.GRU(8, 8, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8, bias=False))
        self.transposed = nn.Parameter(torch.zeros(8, 8))  # as in GPT-2's Conv1D
        self.shift = nn.Parameter(torch.zeros(8))
        self.convolution = nn.Conv1d(8, 8, 3, padding=1, groups=2)
        self.lists = nn.ParameterList([torch.zeros(8), torch.zeros(8)])
        self.head = nn.Linear(8, 50, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1]).expand_as(ids)
        hidden = self.embed(ids) + self.places(places) - self.mean
        hidden = self.norm(hidden)
        if self.attention is not None:
            hidden = hidden + self.attention(hidden, hidden, hidden, need_weights=False)[0]
        hidden = self.scale * hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + 1e-6)
        hidden = hidden + self.mlp(hidden)
        flat = torch.addmm(self.shift, hidden.view(-1, 8), self.transposed)
        hidden = hidden + flat.view_as(hidden) + hidden @ self.transposed
        hidden = hidden + self.convolution(hidden.transpose(1, 2)).transpose(1, 2)
        hidden = hidden * self.lists[0] + hidden * self.lists[1]
        if self.recurrent is not None:
            hidden = self.recurrent(hidden)[0]
        # The weight of another module, read without this module's forward.
        hidden = functional.linear(hidden, self.mlp[0].weight)[..., :8]
        return self.head(hidden)[:, -1]


def zoo(dtype: torch.dtype = torch.float32, batch_first: bool = False) -> tuple[Zoo, Callable[..., Tensor]]:
    """Returns the model and a closure that takes the number of copies of its batch."""
    model = Zoo(batch_first).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        model.mean.fill_(0.1)
    ids = torch.randint(0, 50, (4, 6), generator=generator)
    targets = torch.randint(0, 50, (4,), generator=generator)
    model = model.to(dtype)

    def closure(copies: int = 1) -> Tensor:
        logits = model(ids.repeat(copies, 1)).float()
        return functional.cross_entropy(logits, targets.repeat(copies), reduction="none")

    return model, closure


LAWS: list[Callable[[], Perturbation]] = [Gaussian, GaussianPool, Rademacher]
"""Laws whose draws streamed probing adds in different ways."""
