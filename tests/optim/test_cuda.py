"""Tests of what differs on a GPU: ``pytest -m gpu``. ``ZOLIT_TEST_DEVICE=cuda`` runs many other tests there too."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.conftest import Fit, summary
from tests.helpers.battery import METHODS, made, model_for
from tests.helpers.tiny import regression, same, weights_of
from zolit import MeZO, PerExample
from zolit.cli.bench.memory import peak_bytes
from zolit.optim.perturbation.base import Perturbation
from zolit.optim.perturbation.gaussian import Gaussian
from zolit.optim.perturbation.gaussian_pool import GaussianPool
from zolit.optim.perturbation.rademacher import Rademacher

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
ON_GPU = ("--trainer.accelerator=gpu", "--trainer.devices=1")

EVALUATIONS = {"mezo-gv": 2, "mezo-greedy": 2, "bszo, b": 2, "agzo": 2, "agzo, rank 2, two-sided": 2}
"""How often a step waits for losses, for methods that evaluate them in several calls."""


@pytest.fixture
def waits() -> Callable[[Callable[[], object]], list[str]]:
    """Returns a function that lists the lines in which the host waits for the device during a call."""

    def count(call: Callable[[], object]) -> list[str]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that the mode is a prototype
            torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return [f"{Path(warning.filename).name}:{warning.lineno}" for warning in caught]

    return count


READING_BACK = ("parameters", "refreshed", "profiled again", "dizo, often", "zo-act", "dominant", "hi-zfo")
"""Forms that read weights, masks or blocks on the host in a step."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [name for name in METHODS if not any(part in name for part in READING_BACK)])
def test_a_step_waits_for_losses_and_with_scores_for_squared_norms(
    waits: Callable[[Callable[[], object]], list[str]], name: str, dtype: torch.dtype
) -> None:
    model = model_for(name, dtype).to(CUDA)
    optimizer = made(name, model)
    closure = regression(model)
    for _ in range(12):  # all weights have been perturbed, and checked, by then
        optimizer.step(closure)
    found = waits(lambda: optimizer.step(closure))
    losses = EVALUATIONS.get(name, 1)
    # Layers have 6 x 6 and 6 weights: norms of pieces that are no multiple of 64 are computed on the device.
    scored = optimizer.last_step.selection.scores is not None
    assert len(found) <= losses + 2 * scored, found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("law", [GaussianPool, Gaussian, Rademacher])
def test_streamed_probes_are_those_in_place(law: Callable[[], Perturbation], dtype: torch.dtype) -> None:
    runs = []
    for probing in ("streamed", "in_place"):
        model = llama(dtype)
        before = weights_of(model)
        optimizer = MeZO(model, lr=0.0, eps=1e-2, perturbation=law(), probing=probing)
        for _ in range(3):
            optimizer.step(closure_of(model))
        runs.append(optimizer.last_step.losses)
        # In-place probing restores float32 weights up to rounding.
        if probing == "streamed" or dtype != torch.float32:
            assert same(weights_of(model), before)
    limit = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}[dtype]
    assert runs[0] == pytest.approx(runs[1], rel=limit)
    assert runs[0][0] != runs[0][1]


def llama(dtype: torch.dtype) -> nn.Module:
    """Matrices of several pieces, a tied head and grouped heads."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=9000,
        hidden_size=512,
        intermediate_size=9216,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    )
    return AutoModelForCausalLM.from_config(config, dtype=dtype).to(CUDA).eval()


def closure_of(model: nn.Module, examples: Sequence[int] = range(8)) -> Callable[[], Tensor]:
    ids = torch.randint(9000, (8, 12), generator=torch.Generator().manual_seed(1))[list(examples)].to(CUDA)
    labels = torch.tensor(examples, device=CUDA)

    def losses() -> Tensor:
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[:, -1]
        return nn.functional.cross_entropy(logits.float(), labels, reduction="none")

    return losses


def test_the_weights_move_by_what_autograd_finds_along_the_direction() -> None:
    """In float32: θ' - θ = -lr Δ u, and ⟨∇L, u⟩ = Δ."""
    model = llama(torch.float32)
    optimizer = MeZO(model, lr=1e-3, eps=1e-3)
    closure = closure_of(model)
    for _ in range(2):
        optimizer.step(closure)
    before = {name: value.double() for name, value in weights_of(model).items()}
    closure().mean().backward()
    slopes = {name: parameter.grad.double() for name, parameter in model.named_parameters()}
    model.zero_grad()
    optimizer.step(closure)
    moved = {name: value.double() - before[name] for name, value in weights_of(model).items()}
    found = sum(float((moved[name] * slope).sum()) for name, slope in slopes.items())
    assert found == pytest.approx(-1e-3 * optimizer.last_step.coefficients[0] ** 2, rel=2e-2)


@pytest.mark.parametrize("guided", [True, False])
def test_an_example_has_the_same_direction_in_every_batch(guided: bool) -> None:
    def slopes(ids: Sequence[int]) -> list[float]:
        model = llama(torch.float32)
        optimizer, losses = PerExample(model, lr=0.0, eps=1e-3, guided=guided), closure_of(model, ids)
        for _ in range(2):  # the first step checks the model
            optimizer.step(losses, examples=ids)
        return [coefficient * len(ids) for coefficient in optimizer.last_step.coefficients]

    together = slopes(range(8))
    for example in (0, 5):
        assert slopes([example]) == pytest.approx([together[example]], rel=1e-2, abs=1e-2)


@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "16-true", "bf16-mixed"])
@pytest.mark.parametrize("method", ["mezo", "curvzo", "per-example"])
def test_fit_on_a_gpu(zolit: Fit, tmp_path: Path, method: str, precision: str) -> None:
    options = (f"--config=configs/method/{method}.yaml", f"--trainer.precision={precision}", *ON_GPU)
    zolit("fit", *options, "--trainer.max_steps=4", "--trainer.val_check_interval=4")
    figures = summary(tmp_path)
    assert figures["steps"] == 4
    assert figures["skipped_steps"] == 0
    assert figures["peak_memory_bytes"] < 2**28


def test_memory_profiler_reads_the_allocator(zolit: Fit) -> None:
    cli = zolit("fit", *ON_GPU, "--trainer.max_steps=4")
    (profiler,) = [found for found in cli.trainer.callbacks if type(found).__name__ == "MemoryProfiler"]
    assert profiler.peak_bytes["fit"] <= torch.cuda.max_memory_allocated() + 2**20
    assert profiler.reserved_bytes["fit"] >= profiler.peak_bytes["fit"] > 2**16


def test_a_step_takes_little_more_memory_than_inference() -> None:
    model = llama(torch.bfloat16)
    closure = closure_of(model)

    @torch.no_grad()
    def inference() -> None:
        closure()

    forward = peak_bytes(CUDA, inference, inference)
    optimizer = MeZO(model, lr=1e-6)
    step = peak_bytes(CUDA, lambda: [optimizer.step(closure) for _ in range(2)], lambda: optimizer.step(closure))
    held = optimizer.scratch_bytes()
    layer = sum(parameter.nbytes for parameter in model.model.layers[0].parameters())
    assert step - forward <= held + layer + 2**20
