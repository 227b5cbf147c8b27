"""The arithmetic of a step, on models whose products can be counted by hand, and in runs."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.flop_counter import FlopCounterMode
from zolit_callbacks.arithmetic import FlopCounter, StepArithmetic

import zolit as package
from tests.conftest import Fit, summary
from tests.helpers.battery import METHODS, made, model_for
from tests.helpers.runs import end, summary_of
from tests.helpers.tiny import layered, regression, same, weights_of
from zolit.models.loading import load_language_model
from zolit.quickstart import MODEL

BATCH, WIDTH, HIDDEN, OUT = 16, 8, 6, 5
INPUTS = torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(0))
FIRST, SECOND = 2 * BATCH * WIDTH * HIDDEN, 2 * BATCH * HIDDEN * OUT


def of_a_step(model: nn.Module, method: str, **options: Any) -> float | None:
    """Returns the mean over two measured steps, after the first step and its checks."""
    optimizer = getattr(package, method)(model, lr=1e-3, **options)

    def losses() -> Tensor:
        answers: Tensor = model(INPUTS)
        return answers.square().sum(1)

    optimizer.step(losses)
    arithmetic = StepArithmetic()
    for _ in range(2):
        arithmetic.begin(optimizer, losses)
        optimizer.step(losses)
        arithmetic.end(optimizer.last_step)
    return arithmetic.step_over_forward


@pytest.mark.parametrize(("directions", "expected"), [(1, 2.0), (4, 8.0)])
def test_probes_of_mezo_count_as_forwards(directions: int, expected: float) -> None:
    assert of_a_step(nn.Linear(WIDTH, OUT), "MeZO", directions=directions) == expected


def test_a_backward_pass_needs_no_gradient_of_the_first_input() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, OUT))
    expected = (2 * FIRST + 3 * SECOND) / (FIRST + SECOND)
    assert of_a_step(model, "FirstOrder") == pytest.approx(expected)


@pytest.mark.parametrize("rank", [1, 2])
def test_thin_products_and_outer_products_of_per_example_directions(rank: int) -> None:
    model = nn.Linear(WIDTH, OUT, bias=False)
    forward = 2 * BATCH * WIDTH * OUT
    thin = 2 * BATCH * rank * (WIDTH + OUT)  # x·b, and that times a, in each of two probes
    outer = 2 * BATCH * rank * WIDTH * OUT  # the sum of Δᵢaᵢbᵢᵀ over the examples
    expected = (2 * forward + 2 * thin + outer) / forward
    assert of_a_step(model, "PerExample", guided=False, rank=rank) == pytest.approx(expected)


def test_steps_that_differ_are_averaged_by_their_forwards() -> None:
    """Every third step makes more forwards. The two measured ones do not, but the run's number of forwards counts."""
    arithmetic, model = StepArithmetic(), layered()
    optimizer = package.DiZO(model, lr=1e-3, pattern="layers", every=3, inner_steps=2)
    losses = regression(model)
    for index in range(6):
        if index in (1, 3):
            arithmetic.begin(optimizer, losses)
        optimizer.step(losses)
        arithmetic.end(optimizer.last_step)
    assert optimizer.last_step is not None
    forwards = optimizer.last_step.total_forward_passes
    assert forwards > 12
    assert arithmetic.step_over_forward == pytest.approx(forwards / 6)


@pytest.mark.parametrize("name", METHODS)
def test_counting_changes_no_bit(name: str) -> None:
    weights = []
    for counts in (False, True):
        model = model_for(name)
        with warnings.catch_warnings(action="ignore"):
            optimizer = made(name, model)
            losses, arithmetic = regression(model), StepArithmetic()
            for index in range(4):
                if counts and index % 2:
                    arithmetic.begin(optimizer, losses)
                optimizer.step(losses)
                assert optimizer.last_step is not None
                arithmetic.end(optimizer.last_step)
        weights.append(weights_of(model))
    assert same(*weights)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("backward", [False, True])
def test_a_transformer_is_counted_as_by_torch_and_to_the_bit(attention: str, backward: bool) -> None:
    model: Any = load_language_model(
        str(MODEL), dtype=torch.float32, attn_implementation=attention, trust_remote_code=False
    )
    ids = torch.arange(24).view(2, 12)

    def run() -> list[Tensor]:
        with torch.set_grad_enabled(backward):
            loss = model(input_ids=ids).logits.square().mean()
        return list(torch.autograd.grad(loss, list(model.parameters()))) if backward else [loss]

    alone = run()
    with FlopCounter() as counter:
        counted = run()
    assert all(torch.equal(one, other) for one, other in zip(alone, counted, strict=True))
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as reference:
        run()
    # Torch's attention computes its scores again in the backward pass: one more product of two times two.
    layers, heads, width, tokens = model.config.num_hidden_layers, model.config.num_attention_heads, 16, 12
    assert width == model.config.hidden_size // heads
    again = layers * 2 * (2 * heads * tokens**2 * width) if attention == "sdpa" and backward else 0
    assert counter.flops == reference.get_total_flops() + again


def test_a_failed_step_ends_the_count() -> None:
    model = nn.Linear(WIDTH, OUT)
    optimizer, arithmetic = package.MeZO(model, lr=1e-6), StepArithmetic()
    optimizer.step(lambda: model(INPUTS).sum(1))
    arithmetic.begin(optimizer, lambda: model(INPUTS))
    with pytest.raises(ZeroDivisionError):
        optimizer.step(lambda: 1 / 0)  # type: ignore[arg-type, return-value]  # the failure
    assert _get_current_dispatch_mode() is not None
    arithmetic.abandon()
    assert _get_current_dispatch_mode() is None
    optimizer.step(lambda: model(INPUTS).sum(1))
    assert arithmetic.step_over_forward is None


SHORT = ("--trainer.max_steps=9", "--trainer.val_check_interval=9")


@pytest.mark.parametrize(
    "options",
    [
        ("--trainer.precision=bf16-true",),
        ("--trainer.precision=bf16-mixed",),
        ("--model.micro_batch_size=5",),
        ("--model.optimizer.probing=joint",),
        ("--model.tuning=zolit.models.PrefixTuning",),
    ],
    ids=str,
)
def test_two_forwards_are_two_in_every_kind_of_run(zolit: Fit, tmp_path: Path, options: tuple[str, ...]) -> None:
    zolit("fit", "--config=configs/method/mezo.yaml", *SHORT, *options)
    assert summary(tmp_path)["step_flops_over_forward"] == 2.0


def test_a_backward_pass_that_computes_parts_again_costs_another_forward(zolit: Fit, tmp_path: Path) -> None:
    found = []
    for size in ("null", "8"):
        zolit(
            "fit",
            "--config=configs/method/first-order.yaml",
            *SHORT,
            f"--model.micro_batch_size={size}",
            f"--trainer.logger.init_args.save_dir={tmp_path / size}",
        )
        found.append(summary(tmp_path / size)["step_flops_over_forward"])
    assert found[1] - found[0] == pytest.approx(1.0, abs=0.02)


def test_a_resumed_run_counts_the_same_steps(zolit: Fit, tmp_path: Path) -> None:
    method = "--config=configs/method/first-order.yaml"
    whole, parts = (f"--trainer.logger.init_args.save_dir={tmp_path / name}" for name in ("whole", "parts"))
    zolit("fit", method, *SHORT, whole)
    begun = zolit("fit", method, "--trainer.max_steps=4", "--trainer.val_check_interval=4", parts)
    saved = begun.trainer.checkpoint_callback.last_model_path
    zolit("fit", method, *SHORT, parts, f"--ckpt_path={saved}")
    last = [end(tmp_path / name)[0] for name in ("whole", "parts")]
    states = [checkpoint["callbacks"]["RunSummary"]["arithmetic"] for checkpoint in last]
    assert states[0] == states[1]
    assert states[0]["forwards"] == 3  # steps 2, 4 and 8
    assert same(*(checkpoint["state_dict"] for checkpoint in last))
    assert summary_of(tmp_path / "whole")["forward_passes"] == 9
