"""Compares streamed probing of random modules with stored directions and weights that are written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from zolit import MeZO, ZerothOrder
from zolit.optim.blocks import BlockSample, partition, trainable_weights
from zolit.optim.perturbation.base import Perturbation
from zolit.optim.perturbation.directions import Directions
from zolit.optim.perturbation.gaussian import Gaussian
from zolit.optim.perturbation.gaussian_pool import GaussianPool
from zolit.optim.perturbation.low_rank.low_rank import LowRank
from zolit.optim.perturbation.rademacher import Rademacher
from zolit.optim.probing.base import Prober
from zolit.optim.probing.streamed.prober import Streamed
from zolit.optim.randomness import Step

KINDS = ["linear", "bare", "norm", "batchnorm", "lookup", "bilinear"]
LAWS = [Gaussian, GaussianPool, LowRank, Rademacher]


class Made(nn.Module):
    """A chain of random layers over vectors of one width; equal layers may share a weight or be one module."""

    def __init__(self, width: int, kinds: list[str], ties: list[int], frozen: list[bool]) -> None:
        super().__init__()
        made: list[nn.Module] = []
        for kind, tie in zip(kinds, ties, strict=True):
            layer: nn.Module
            if kind == "linear":
                layer = nn.Linear(width, width)
            elif kind == "bare":
                layer = nn.Linear(width, width, bias=False)
            elif kind == "norm":
                layer = nn.LayerNorm(width)
            elif kind == "batchnorm":
                layer = nn.BatchNorm1d(width)
            elif kind == "lookup":
                layer = nn.Embedding(7, width)
            else:
                layer = nn.Bilinear(width, width, width)
            alike = [other for other in made if type(other) is type(layer)]
            if alike and tie == 1:
                layer.weight = alike[0].weight
            if alike and tie == 2:
                layer = alike[0]
            made.append(layer)
        self.layers = nn.ModuleList(made)
        self.register_buffer("offset", torch.linspace(-1.0, 1.0, width))
        self.scale = nn.Parameter(torch.ones(()))
        for parameter, stays in zip(self.layers.parameters(), frozen, strict=False):
            parameter.requires_grad = not stays

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = inputs + self.offset
        for layer in self.layers:
            if isinstance(layer, nn.Embedding):
                hidden = hidden + layer(torch.arange(len(hidden)) % 7)
            elif isinstance(layer, nn.Bilinear):
                hidden = torch.tanh(layer(hidden, hidden))
            else:
                hidden = torch.sin(layer(hidden)) * self.scale
        return hidden.square().mean(1)


class Stored(Prober):
    """A prober that stores every direction as a tensor, and writes θ + Σ cᵢuᵢ into the weights."""

    def bind(self, model: nn.Module, weights: Any, blocks: Any) -> None:
        self._model = model

    def losses(self, closure: Any, directions: Directions, queries: Tensor, repeats_batch: bool = False) -> Tensor:
        losses, origin = [], {weight: weight.flat.clone() for weight in directions.weights}
        stored = {
            weight: [
                torch.cat([v * f for v, f in (directions.draw(i, weight, *ends) for ends in directions.chunks(weight))])
                for i in range(directions.count)
            ]
            for weight in directions.weights
        }
        for query in queries.tolist():
            for weight, theta in origin.items():
                weight.flat.copy_(theta + sum(c * z.double() for c, z in zip(query, stored[weight], strict=True)))
            losses.append(closure().mean())
        for weight, theta in origin.items():
            weight.flat.copy_(theta)
        return torch.stack(losses)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    width=st.integers(1, 9),
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=5),
    ties=st.lists(st.integers(0, 2), min_size=5, max_size=5),
    frozen=st.lists(st.booleans(), min_size=10, max_size=10),
    law=st.sampled_from(LAWS),
    chance=st.sampled_from([1.0, 0.5]),
    seed=st.integers(0, 2**32),
)
def test_equals_stored_directions(
    width: int,
    kinds: list[str],
    ties: list[int],
    frozen: list[bool],
    law: type[Perturbation],
    chance: float,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    model = Made(width, kinds, ties[: len(kinds)], frozen).double().eval()
    inputs = torch.randn(4, width, dtype=torch.float64)
    weights = trainable_weights(model)
    blocks = partition(weights)
    chosen = torch.rand(len(blocks)) < chance
    chosen[0] = True
    ones = torch.ones(len(blocks), dtype=torch.float64)
    perturbation, step = law(), Step(seed, 3)
    perturbation.begin_step(step)
    directions = Directions(BlockSample(blocks, chosen, ones, ones), perturbation, step, range(2))
    queries = torch.tensor([[0.1, 0.0], [-0.1, 0.0], [0.03, -0.2]], dtype=torch.float64)
    before = [weight.flat.clone() for weight in weights]
    found = []
    with torch.no_grad():
        for prober in (Stored(), Streamed()):
            prober.bind(model, weights, blocks)
            found.append(prober.losses(lambda: model(inputs), directions, queries))
            assert all(torch.equal(weight.flat, theta) for weight, theta in zip(weights, before, strict=True))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-12)


# peft's, of transformers
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_lora_through_peft() -> None:
    """Adapters are perturbed, the base model is not, and losses equal those of in-place probing."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=60, num_key_value_heads=2, **sizes)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        runs = []
        for probing in ("streamed", "joint", "in_place"):
            torch.manual_seed(0)
            model = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
            model = model.to(dtype).eval()
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if "lora_B" in name:
                        parameter.normal_(std=0.1)
            optimizer = MeZO(model, lr=1e-3, eps=1e-1, probing=probing)
            ids = torch.arange(24).view(4, 6)

            def losses(model: nn.Module = model, optimizer: ZerothOrder = optimizer, ids: Tensor = ids) -> Tensor:
                repeated = ids.repeat(optimizer.batch_repeats, 1)
                logits = model(input_ids=repeated, use_cache=False).logits[:, -1].float()
                return nn.functional.cross_entropy(logits, repeated[:, 0], reduction="none")

            for _ in range(3):
                optimizer.step(losses, repeats_batch=True)
            runs.append(optimizer.last_step.losses)
            assert all("lora_" in name for block in optimizer.blocks for name in [block.name])
        assert runs[0][0] != runs[0][1]
        for other in runs[1:]:
            torch.testing.assert_close(torch.tensor(runs[0]), torch.tensor(other), rtol=tolerance, atol=0)
