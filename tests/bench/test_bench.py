from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import layered, regression, weights_of
from zolit import MeZO
from zolit.bench.measure import pieces
from zolit.bench.memory import peak_bytes
from zolit.bench.stopwatch import Piece, Stopwatch
from zolit.bench.yardstick import FourPass
from zolit.cli import main
from zolit.directions import Directions
from zolit.perturbation import Gaussian
from zolit.quickstart import MODEL

Bench = Callable[..., None]
CPU = torch.device("cpu")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Runs the command on the quickstart's model as a user would, quickly."""

    def call(*options: str, model: str = str(MODEL)) -> None:
        few = ("--tokens=8", "--batch=2", "--seconds=0.2", "--device=cpu")
        monkeypatch.setattr(sys, "argv", ["zolit", "bench", f"--model.name_or_path={model}", *few, *options])
        main()

    return call


# --- the command -----------------------------------------------------------------------------------------------------

SETTING = {
    "model": str,
    "parameters": int,
    "device": str,
    "torch": str,
    "threads": int,
    "batch": int,
    "tokens": int,
    "perturbation": str,
    "measurements": list,
}
MEASUREMENT = {
    "precision": str,
    "rounds": int,
    "forwards_seconds": float,
    "inference_peak_bytes": int,
    "weight_bytes": int,
    "steps": list,
}
STEP = {
    "method": str,
    "probing": str,
    "step_over_forwards": dict,
    "step_seconds": float,
    "noise_seconds": float,
    "arithmetic_seconds": float,
    "overhead_seconds": float,
    "peak_bytes": int,
    "peak_over_inference": float,
    "forward_passes": int,
    "reduced_bytes": int,
}


def kinds(record: dict[str, Any]) -> dict[str, type]:
    return {key: type(value) for key, value in record.items()}


def test_command(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench(f"--json={tmp_path / 'bench.json'}", "--precision=32-true,bf16-true")
    content = json.loads((tmp_path / "bench.json").read_text())
    assert kinds(content) == SETTING
    assert content["model"] == "model"
    assert content["parameters"] == 170_944
    assert str(MODEL.parent) not in json.dumps(content)
    assert [measurement["precision"] for measurement in content["measurements"]] == ["32-true", "bf16-true"]
    for measurement, width in zip(content["measurements"], (4, 2), strict=True):
        assert kinds(measurement) == MEASUREMENT
        assert measurement["rounds"] >= 3
        # A Llama's buffers are few: the frequencies of its rotations.
        assert 0 <= measurement["weight_bytes"] - width * 170_944 < 1_000
        assert measurement["inference_peak_bytes"] > measurement["weight_bytes"]
        rows = [(step["method"], step["probing"]) for step in measurement["steps"]]
        assert rows == [("mezo", "streamed"), ("curvzo", "streamed"), ("four-pass", "in_place")]
        for step in measurement["steps"]:
            assert kinds(step) == STEP
            ratio = step["step_over_forwards"]
            assert 0.0 < ratio["least"] <= ratio["median"] <= ratio["most"]
            assert step["noise_seconds"] > 0.0
            assert step["arithmetic_seconds"] > 0.0
            parts = [step[f"{part}_seconds"] for part in ("noise", "arithmetic", "overhead")]
            assert measurement["forwards_seconds"] + sum(parts) == pytest.approx(step["step_seconds"])
            assert step["peak_over_inference"] == step["peak_bytes"] / measurement["inference_peak_bytes"] > 1.0
            assert step["forward_passes"] == 2
            assert step["reduced_bytes"] == 8  # two losses, float32
    printed = capsys.readouterr().out
    for word in ("mezo", "curvzo", "four-pass", "32-true", "bf16-true", "170,944"):
        assert word in printed


def test_every_way_of_probing(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    bench(
        "--methods=mezo,perexample",
        "--precision=32-true",
        "--probing=joint,in_place",
        "--perturbation=gaussian",
        f"--json={path}",
    )
    (measurement,) = json.loads(path.read_text())["measurements"]
    rows = [(step["method"], step["probing"], step["forward_passes"]) for step in measurement["steps"]]
    assert rows == [
        ("mezo", "joint", 2),
        ("mezo", "in_place", 2),
        ("perexample", "individual", 2),
        ("four-pass", "in_place", 2),
    ]
    # Two losses of each example, its name, and what its directions are mixed from: an input of each matrix.
    mixtures = measurement["steps"][2]["reduced_bytes"] - 2 * (4 + 4 + 8)
    assert mixtures > 0
    assert mixtures % (2 * 4) == 0


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--methods=mezo,adam", "methods: 'adam' is none of agzo, bszo, fzoo, lozo, curvzo"),
        ("--precision=64-true", "precision: '64-true' is none of 32-true, bf16-true"),
        ("--probing=", "probing: '' is none of streamed, joint, in_place"),
        ("--tokens=1000", "tokens: the model has places for 128 tokens, not for 1000"),
        ("--json=nowhere/bench.json", "json: there is no folder for the file nowhere/bench.json"),
        ("--batch=0", "batch: Not of type PositiveInt"),
        ("--seconds=soon", "seconds: Not of type NonNegativeFloat"),
        ("--device=tpu", "device: Expected a typing.Literal['auto', 'cpu', 'cuda']"),
        ("--perturbation=cauchy", "perturbation: Expected a typing.Literal"),
        ("--rounds=3", "unrecognized arguments: --rounds=3"),
        ("--model.name_or_path=./nowhere", "model.name_or_path: there is no folder ./nowhere"),
    ],
)
def test_bad_options_end_in_one_sentence(
    bench: Bench, capsys: pytest.CaptureFixture[str], option: str, sentence: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        bench(option)
    said = capsys.readouterr().err.splitlines()[-1] if isinstance(stopped.value.code, int) else stopped.value.code
    assert stopped.value.code not in (0, None)
    assert said.startswith(f"zolit: error: {sentence}")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_no_cuda_device_is_said(bench: Bench) -> None:
    with pytest.raises(SystemExit, match="zolit: error: device: there is no CUDA device here"):
        bench("--device=cuda")


# --- the yardstick ---------------------------------------------------------------------------------------------------


def test_yardstick_moves_along_what_it_probed() -> None:
    model = layered(torch.float64)
    origin, seen, losses = weights_of(model), [], []
    closure = regression(model)

    def spy() -> torch.Tensor:
        seen.append(weights_of(model))
        losses.append(float(closure().mean()))
        return closure()

    assert FourPass(model, lr=0.1, eps=1e-3).step(spy) == pytest.approx(sum(losses) / 2)
    up, down = seen
    derivative = (losses[0] - losses[1]) / 2e-3
    z = {name: (up[name] - theta) / 1e-3 for name, theta in origin.items()}
    assert 0.5 < float(torch.cat([value.flatten() for value in z.values()]).std()) < 1.5
    assert derivative != 0.0
    for name, moved in weights_of(model).items():
        assert torch.allclose(down[name], origin[name] - 1e-3 * z[name], rtol=0, atol=1e-12)
        assert torch.allclose(moved, origin[name] - 0.1 * derivative * z[name], rtol=0, atol=1e-10)


def test_yardstick_restores_the_weights() -> None:
    model = layered()
    before = weights_of(model)
    yardstick = FourPass(model, lr=0.0, eps=1e-3)
    for _ in range(3):
        yardstick.step(regression(model))
    assert all(torch.allclose(weights_of(model)[name], value, rtol=0, atol=1e-6) for name, value in before.items())


def test_yardstick_draws_a_new_direction_each_step() -> None:
    model = layered(torch.float64)
    seen = []
    closure = regression(model)

    def spy() -> torch.Tensor:
        seen.append(weights_of(model)["embed.weight"])
        return closure()

    yardstick = FourPass(model, lr=0.0, eps=1e-3)
    yardstick.step(spy)
    yardstick.step(spy)
    assert not torch.allclose(seen[0], seen[2], rtol=0, atol=1e-6)


# --- memory ----------------------------------------------------------------------------------------------------------


def block(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8)


def test_peak_is_of_what_is_held_at_once() -> None:
    def allocate() -> None:
        first = block(1_000_000)
        second = block(2_000_000)
        del first
        third = block(500_000)
        del second, third
        block(2_900_000)

    assert peak_bytes(CPU, lambda: None, allocate) == 3_000_000


def test_peak_counts_what_preparing_leaves_and_not_what_it_frees() -> None:
    kept = []

    def prepare() -> None:
        block(5_000_000)
        kept.append(block(300_000))

    assert peak_bytes(CPU, prepare, lambda: block(1_000)) == 301_000


def test_peak_counts_memory_within_an_operator() -> None:
    """Singular values are computed of a copy, which no one outside sees."""
    matrix = torch.ones(100, 1_000)
    assert peak_bytes(CPU, lambda: None, lambda: torch.linalg.svdvals(matrix)) > matrix.nbytes


def test_memory_from_before_does_not_count() -> None:
    """Also at an address that was measured, freed unseen and (most likely) taken again: see ``peak_bytes``."""
    old = []
    peak_bytes(CPU, lambda: None, lambda: old.append(block(1 << 26)))
    old.clear()
    old.append(block(1 << 26))
    assert peak_bytes(CPU, lambda: None, lambda: (old.clear(), block(10_000))) == 10_000


# --- parts of a step -------------------------------------------------------------------------------------------------


class Clock:
    """Goes only where somebody says so."""

    def __init__(self) -> None:
        self.now = 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("zolit.bench.stopwatch.clock", lambda device: clock.now)
    return clock


class Worker:
    """Whose work contains its noise."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def noise(self) -> str:
        self.clock.now += 20.0
        return "noise"

    def work(self) -> str:
        self.clock.now += 5.0
        noise = self.noise()
        self.clock.now += 2.0
        return noise


def test_a_part_within_another_has_its_time_for_itself(clock: Clock) -> None:
    worker, watch = Worker(clock), Stopwatch(CPU)
    with watch.timing([Piece(worker, "noise", "noise"), Piece(Worker, "work", "work")]):
        assert worker.work() == "noise"
        clock.now += 100.0
        worker.noise()
    assert watch.seconds == {"noise": 40.0, "work": 7.0}
    assert vars(worker).keys() == {"clock"}
    worker.work()
    assert watch.seconds == {"noise": 40.0, "work": 7.0}


class Slow(Gaussian):
    """A law that takes a second a draw."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def draw(self, *args: Any) -> tuple[torch.Tensor, float]:
        self.clock.now += 1.0
        return super().draw(*args)


def test_noise_is_what_draws_take_and_arithmetic_the_rest(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(self: Directions, *args: Any, real: Any = Directions.perturb) -> None:
        clock.now += 1000.0
        real(self, *args)

    monkeypatch.setattr(Directions, "perturb", slowly)
    model, watch = layered(), Stopwatch(CPU)
    optimizer = MeZO(model, lr=1e-7, perturbation=Slow(clock))
    with watch.timing(pieces(optimizer)):
        optimizer.step(regression(model))
    tensors = len(list(model.parameters()))
    draws, perturbed = watch.seconds["noise"], watch.seconds["arithmetic"] / 1000.0
    assert perturbed >= 2 * tensors
    assert draws == perturbed + tensors
    assert draws + 1000.0 * perturbed == clock.now


def test_pieces_come_back_when_a_step_fails(clock: Clock) -> None:
    worker, watch = Worker(clock), Stopwatch(CPU)
    original = Worker.work

    def fail() -> None:
        with watch.timing([Piece(worker, "noise", "noise"), Piece(Worker, "work", "work")]):
            assert Worker.work is not original
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert Worker.work is original
    assert vars(worker).keys() == {"clock"}
