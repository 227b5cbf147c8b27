"""Probing that never writes the weights, against in-place probing and against weights that are written out."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.probing.alike import assert_probed_alike
from tests.tiny import layered, regression, same, seen_by, weights_of
from zolit import CurvZO, MeZO, ZerothOrder
from zolit.perturbation import Gaussian, GaussianPool, Perturbation, Rademacher
from zolit.probing import InPlace, Streamed
from zolit.probing.perturbed import PerturbedWeight
from zolit.scratch import CHUNK


class Zoo(nn.Module):
    """One of each way in which modules read weights; every output depends on its own example alone."""

    def __init__(self, batch_first: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 8, padding_idx=0)
        self.places = nn.Embedding(6, 8)
        self.norm = nn.LayerNorm(8)
        self.scale = nn.Parameter(torch.ones(8))
        # These two transpose inside, so that copies of the batch are not told apart along the first dimension.
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
        # Another module's weight, which its own forward would not hand out.
        hidden = functional.linear(hidden, self.mlp[0].weight)[..., :8]
        return self.head(hidden)[:, -1]


def zoo(dtype: torch.dtype = torch.float32, batch_first: bool = False) -> tuple[Zoo, Callable[[], Tensor], Tensor]:
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

    return model, closure, ids


LAWS: list[Callable[[], Perturbation]] = [Gaussian, GaussianPool, Rademacher]


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("directions", [1, 3])
def test_losses_are_those_of_weights_that_are_moved(law: Callable[[], Perturbation], directions: int) -> None:
    """Every way to read a weight, tied weights and buffers included, in float64: no difference but of rounding."""
    runs = []
    for probing in ("streamed", "in_place"):
        model, closure, _ = zoo(torch.float64)
        optimizer = MeZO(model, lr=1e-3, eps=1e-2, directions=directions, perturbation=law(), probing=probing)
        for _ in range(3):
            optimizer.step(closure)
        runs.append(optimizer.last_step.losses)
    assert runs[0] == pytest.approx(runs[1], rel=1e-12)
    assert len(set(runs[0])) == 2 * directions


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_losses_in_low_precision(dtype: torch.dtype, tolerance: float) -> None:
    runs = []
    for probing in ("streamed", "in_place"):
        model, closure, _ = zoo(dtype)
        optimizer = CurvZO(model, eps=1e-2, probing=probing)
        optimizer.step(closure)
        runs.append(optimizer.last_step.losses)
    assert runs[0] == pytest.approx(runs[1], rel=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_weight_is_seen_as_if_it_were_moved(dtype: torch.dtype) -> None:
    """To the bit in 16 bits and to rounding in float32: what modules compute with is what in-place probing writes."""
    seen = []
    for probing in ("streamed", "in_place"):
        model, closure, _ = zoo(dtype)
        optimizer = MeZO(model, eps=1e-2, probing=probing)

        def spy(model: nn.Module = model, closure: Callable[[], Tensor] = closure) -> Tensor:
            seen.append(seen_by(model))
            return closure()

        optimizer.step(spy)
    for streamed, moved in zip(seen[:2], seen[2:], strict=True):
        for name, value in streamed.items():
            torch.testing.assert_close(value, moved[name], rtol=1e-6 if dtype == torch.float32 else 0, atol=1e-7)


@pytest.mark.parametrize("method", [MeZO, CurvZO, partial(CurvZO, blocks="parameter"), partial(MeZO, probing="joint")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_thousand_probes_leave_every_bit(dtype: torch.dtype, method: Callable[..., ZerothOrder]) -> None:
    model = layered(dtype)
    before = weights_of(model)
    optimizer = method(model, lr=0.0, eps=1e-3)
    closure = regression(model)
    if optimizer.prober.copies == 1 and getattr(method, "keywords", {}).get("probing") == "joint":
        inputs, targets = torch.randn(4, 4).to(dtype), torch.randn(4).to(dtype)

        def closure() -> Tensor:
            c = optimizer.copies
            return (model(inputs.repeat(c, 1)) - targets.repeat(c)).square()

    for _ in range(500):
        optimizer.step(closure)
    assert same(weights_of(model), before)


def test_weights_are_never_perturbed_for_whoever_looks() -> None:
    """In the midst of a probe: parameters, state_dict, and what a reference taken before sees, are θ."""
    model, closure, _ = zoo()
    before = weights_of(model)
    held = list(model.parameters())
    looks = 0

    def spy() -> Tensor:
        nonlocal looks
        if looks > 0:  # the first probe has θ hidden
            assert same(weights_of(model), before)
            state = model.state_dict()
            assert all(torch.equal(state[name], value) for name, value in before.items())
            assert all(a is b for a, b in zip(held, model.parameters(), strict=True))
            assert not same(seen_by(model), before)
        looks += 1
        return closure()

    optimizer = MeZO(model, lr=0.0, eps=1e-2)
    for _ in range(3):
        optimizer.step(spy)
    assert looks == 6
    assert same(seen_by(model), before)
    assert not any(isinstance(value, PerturbedWeight) for module in model.modules() for value in vars(module).values())


@pytest.mark.parametrize("call", [1, 2, 3])
def test_modules_find_their_weights_again_when_the_closure_raises(call: int) -> None:
    model, closure, _ = zoo()
    before, calls = weights_of(model), 0

    def broken() -> Tensor:
        nonlocal calls
        calls += 1
        if calls >= call:
            raise KeyboardInterrupt
        return closure()

    optimizer = MeZO(model, lr=1e-3)
    if call == 3:
        optimizer.step(broken)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(broken)
    assert not any(isinstance(value, PerturbedWeight) for module in model.modules() for value in vars(module).values())
    if call < 3:
        assert same(seen_by(model), before)


def test_an_error_of_the_closure_is_the_closures() -> None:
    model, _, _ = zoo()
    optimizer = MeZO(model)

    def broken() -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        optimizer.step(broken)
    with pytest.warns(RuntimeWarning, match="not all finite"):
        optimizer.step(lambda: torch.tensor(math.nan))
    assert isinstance(optimizer.prober, Streamed)
    assert optimizer.prober._fallback is None


class Holder(nn.Module):
    """Keeps its weight where no module attribute is."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.held = [self.weight]

    def forward(self) -> Tensor:
        return (self.held[0] * torch.tensor([1.0, 2.0, 3.0])).sum()


def test_falls_back_where_weights_are_read_past_attributes() -> None:
    runs = []
    for probing in ("streamed", "in_place"):
        model = Holder()
        optimizer = MeZO(model, lr=1e-2, probing=probing)
        if probing == "streamed":
            with pytest.warns(UserWarning, match="elsewhere than in its modules' attributes"):
                optimizer.step(model)
        else:
            optimizer.step(model)
        optimizer.step(model)
        runs.append((optimizer.last_step.losses, weights_of(model)))
    assert runs[0][0] == runs[1][0]
    assert same(runs[0][1], runs[1][1])


def test_a_weight_that_is_chosen_late_is_checked_then() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.honest = nn.Linear(3, 1)
            self.holder = Holder()

        def forward(self) -> Tensor:
            return self.honest(torch.ones(1, 3)).square().sum() + self.holder()

    model = Two()
    optimizer = CurvZO(model, budget=0.4, exploration=0.0, sampling="uniform", lr=1e-3)
    late = False
    for _ in range(20):
        choice = optimizer.selection.select(optimizer.state_dict()["zo"]["steps"])
        held = bool(choice.chosen[2])
        if held and not late:
            late = True
            with pytest.warns(UserWarning, match="elsewhere than in its modules' attributes"):
                optimizer.step(model)
        else:
            optimizer.step(model)
    assert late
    assert optimizer.prober._fallback is not None


def test_falls_back_where_hiding_raises() -> None:
    model = Holder()

    def picky() -> Tensor:
        loss: Tensor = model()
        if not loss.isfinite():
            msg = "the loss must be finite"
            raise ValueError(msg)
        return loss

    optimizer = MeZO(model, lr=1e-2)
    with pytest.warns(UserWarning, match="raises ValueError"):
        optimizer.step(picky)
    assert len(set(optimizer.last_step.losses)) == 2


@pytest.mark.parametrize("width", [64, 576])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("law", LAWS)
def test_matrices_of_many_pieces(law: Callable[[], Perturbation], dtype: torch.dtype, width: int) -> None:
    """A tied embedding and head beyond two chunks: looked up by rows, multiplied with by pieces."""
    rows = 2 * CHUNK // width + 1500
    runs = []
    for probing in ("streamed", "in_place"):
        torch.manual_seed(0)
        embed, head = nn.Embedding(rows, width), nn.Linear(width, rows)
        head.weight = embed.weight
        model = nn.Sequential(embed, head).to(dtype)
        ids = torch.randint(0, rows, (5,))
        optimizer = MeZO(model, eps=1e-1, perturbation=law(), probing=probing)
        optimizer.step(lambda: model(ids).float().square().mean(1))  # noqa: B023  # within this round
        runs.append(optimizer.last_step.losses)
    assert runs[0] == pytest.approx(runs[1], rel=1e-5 if dtype == torch.float32 else 1e-3)
    assert runs[0][0] != runs[0][1]


def test_unchosen_weights_are_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    model = layered()
    optimizer = CurvZO(model, budget=0.3)
    made: list[str] = []
    real = PerturbedWeight.of

    def of(weight: Any, probe: Any) -> PerturbedWeight:
        made.append(weight.name)
        return real(weight, probe)

    monkeypatch.setattr(PerturbedWeight, "of", staticmethod(of))
    for _ in range(10):
        made.clear()
        optimizer.step(regression(model))
        report = optimizer.last_step.selection
        assert made == [name for name, chosen in zip(report.names, report.chosen.tolist(), strict=True) if chosen]
    assert len(made) < len(report.names)


def test_autocast_sees_perturbed_weights() -> None:
    runs = []
    for prober in (Streamed(), InPlace()):
        model, closure, _ = zoo()
        optimizer = ZerothOrder(model, eps=5e-2, prober=prober)
        with torch.autocast("cpu", torch.bfloat16):
            optimizer.step(closure)
        runs.append(optimizer.last_step.losses)
    assert runs[0] == pytest.approx(runs[1], rel=2e-2)
    assert abs(runs[0][0] - runs[0][1]) > 1e-3


def test_weights_describe_themselves_as_they_are() -> None:
    model = nn.Linear(3, 2).to(torch.bfloat16)
    answers = []

    def spy() -> Tensor:
        weight = model.weight
        answers.append((weight.dtype, weight.shape, weight.device.type, weight.ndim, weight.numel(), len(weight)))
        assert isinstance(weight, nn.Parameter)
        return model(torch.ones(1, 3, dtype=weight.dtype)).square().mean()

    MeZO(model).step(spy)
    assert answers == [(torch.bfloat16, (2, 3), "cpu", 2, 6, 2)] * 2


# --- two probes in one forward ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("law", LAWS)
def test_joint_probes_are_the_same_probes(law: Callable[[], Perturbation], directions: int) -> None:
    runs, calls = [], []
    for probing in ("joint", "streamed"):
        model, closure, _ = zoo(torch.float64, batch_first=True)
        optimizer = MeZO(model, lr=1e-3, eps=1e-2, directions=directions, perturbation=law(), probing=probing)

        def asking(closure: Any = closure, optimizer: Any = optimizer) -> Tensor:
            calls.append(optimizer.copies)
            return closure(calls[-1])

        for _ in range(3):
            optimizer.step(asking)
        runs.append(optimizer.last_step.losses)
    assert runs[0] == pytest.approx(runs[1], rel=1e-10)
    assert 2 in calls


def test_a_closure_that_does_not_repeat_its_batch_is_probed_singly() -> None:
    model = layered()
    optimizer = MeZO(model, probing="joint")
    optimizer.step(regression(model))  # the first step of a weight is made of single probes
    with pytest.warns(UserWarning, match="does not repeat its batch"):
        optimizer.step(regression(model))
    assert optimizer.last_step.forward_passes == 2


class Mixing(nn.Module):
    """Lets each example see the others'."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner(inputs.flip(0)).flip(0).sum(1) + self.inner(inputs).mean()


def test_a_model_that_mixes_examples_is_probed_singly() -> None:
    model, inputs = Mixing(), torch.randn(4, 3)
    optimizer = MeZO(model, eps=1e-2, probing="joint")
    optimizer.step(lambda: model(inputs.repeat(optimizer.copies, 1)))
    with pytest.warns(UserWarning, match="mixes the examples"):
        optimizer.step(lambda: model(inputs.repeat(optimizer.copies, 1)))
    assert len(set(optimizer.last_step.losses)) == 2


# --- unusual models ---------------------------------------------------------------------------------------------------


class Expression(nn.Module):
    """A model that is one expression of a few weights."""

    def __init__(self, compute: Callable[..., Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.randn(6, 6))
        self.v, self.e = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(0, 6))
        self.compute = compute

    def forward(self, inputs: Tensor) -> Tensor:
        return self.compute(self, inputs)


@pytest.mark.parametrize(
    "compute",
    [
        lambda m, x: functional.linear(x, m.a * m.v),
        lambda m, x: functional.linear(m.a, m.b) + x.sum(),
        lambda m, x: functional.linear(m.a, m.b, m.v) * m.v,
        lambda m, x: x @ (m.a @ m.b).t() * m.v,
        lambda m, x: torch.cat([m.a, m.b]).sum(0) * x,
        lambda m, x: torch.einsum("ij,kj->ik", x, m.a) + m.v,
        lambda m, x: x @ m.a.detach().to(torch.float64).view(6, 6)[:, ::2] @ m.b[:3],
        lambda m, x: (m.a.data.clone().mul_(2.0) @ x[0]) + m.v.square().sum() * m.v,
        lambda m, x: torch.stack((m.v, m.v * 2.0)).sum() * x,
    ],
)
def test_expressions_of_several_weights(compute: Callable[..., Tensor]) -> None:
    assert_probed_alike(lambda: Expression(compute), torch.randn(5, 6, dtype=torch.float64))


def test_what_reads_memory_without_asking_is_found_out() -> None:
    """Compiled code takes the tensor itself."""
    with torch.jit.optimized_execution(False):
        product = torch.jit.CompilationUnit("def f(x, w):\n    return x @ w\n").f
    model, inputs = nn.Linear(6, 6), torch.randn(3, 6)
    optimizer = MeZO(model, eps=1e-1)
    with pytest.warns(UserWarning, match="they are moved in place"):
        optimizer.step(lambda: product(inputs, model.weight).square().mean() + model.bias.sum())
    assert len(set(optimizer.last_step.losses)) == 2


def test_a_skipped_step_leaves_every_bit() -> None:
    model = nn.Linear(50, 50)
    before = weights_of(model)
    optimizer = MeZO(model, lr=1e-3)
    with pytest.warns(RuntimeWarning, match="not all finite"):
        optimizer.step(lambda: model(torch.ones(2, 50)).sum() * math.inf)
    assert same(weights_of(model), before)


def test_a_model_is_not_copied_amid_a_probe() -> None:
    model = nn.Linear(3, 3)
    optimizer = MeZO(model)
    optimizer.step(lambda: model(torch.ones(1, 3)).square().mean())
    with pytest.raises(RuntimeError, match="between two steps"):
        optimizer.step(lambda: copy.deepcopy(model)(torch.ones(1, 3)).mean())


@pytest.mark.parametrize("seed", range(3))
def test_joint_probes_of_partly_frozen_norms(seed: int) -> None:
    """CurvZO chooses the weight of a norm without its bias: what is left alone is no activation."""
    model, inputs = layered(seed=seed), torch.randn(8, 4)
    for parameter in model.head.parameters():
        parameter.requires_grad = False
    optimizer = CurvZO(model, probing="joint", eps=1e-2, budget=0.5, seed=seed)
    for batch in (8, 8, 8, 5, 8):
        optimizer.step(lambda: model(inputs[:batch].repeat(optimizer.copies, 1)))  # noqa: B023  # within this round
    assert optimizer.prober._joint
    assert optimizer.last_step.forward_passes == 2


def test_positions_are_not_taken_for_examples() -> None:
    """nanoGPT's way: positions of shape (tokens,), of an even number."""
    torch.manual_seed(0)
    words, places, head = nn.Embedding(9, 6), nn.Embedding(6, 6), nn.Linear(6, 9)
    model = nn.ModuleList([words, places, head])
    ids = torch.randint(0, 9, (4, 6))

    def closure() -> Tensor:
        repeated = ids.repeat(optimizer.copies, 1)
        return head(words(repeated) + places(torch.arange(6))).square().mean((1, 2))

    optimizer = MeZO(model, probing="joint")
    optimizer.step(closure)
    with pytest.warns(UserWarning, match="mixes the examples"):
        optimizer.step(closure)
