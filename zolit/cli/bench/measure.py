"""Measures the methods in one precision. They take turns, so that a slowdown of the machine affects all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

from rich.progress import Progress
from torch import Tensor
from zolit_callbacks.arithmetic import FlopCounter

from zolit.cli.bench.baseline import FourPass
from zolit.cli.bench.memory import peak_bytes
from zolit.cli.bench.results import Measurement, Spread, StepCost
from zolit.cli.bench.stopwatch import Stopwatch, TimedFunction, seconds
from zolit.cli.bench.workload import Workload
from zolit.optim.base_point import Closure
from zolit.optim.collectives import Collectives
from zolit.optim.optimizer import ZerothOrder
from zolit.optim.perturbation.factored import FactoredPerturbation
from zolit.optim.probing import arithmetic

MIN_ROUNDS = 3


class Stepper(Protocol):
    """The common interface of an optimizer and the baseline."""

    @property
    def batch_repeats(self) -> int:
        """How often the next call of the closure must repeat its batch."""

    collectives: Collectives

    def step(self, closure: Closure) -> float:
        """Makes one step."""


def timed_functions(stepper: object) -> Iterator[TimedFunction]:
    """Yields the functions that draw all noise and do all arithmetic on weights."""
    match stepper:
        case ZerothOrder():
            yield TimedFunction(stepper.perturbation, "begin_step", "noise")
            yield TimedFunction(stepper.perturbation, "draw", "noise")
            if isinstance(stepper.perturbation, FactoredPerturbation):
                yield TimedFunction(stepper.perturbation, "factors", "noise")
            yield TimedFunction(arithmetic, "perturb", "arithmetic")
            yield TimedFunction(arithmetic, "perturbed_rows", "arithmetic")
            yield TimedFunction(stepper.update, "apply", "arithmetic")
        case FourPass():
            yield TimedFunction(stepper, "noise", "noise")
            yield TimedFunction(stepper, "move", "arithmetic")


@dataclass(frozen=True)
class Candidate:
    """A method to measure.

    Attributes:
        method: Name of the method.
        probing: Name of its probing.
        make: Creates the optimizer or the baseline.
        warmup: Number of steps before the measurement. With two, the first step tests how the model can be probed, and
            the second whether probes can be joint.
        rounds: Largest number of measured rounds; None for all.
    """

    method: str
    probing: str
    make: Callable[[], Stepper]
    warmup: int = 2
    rounds: int | None = None


class _ByteCounter(Collectives):
    """Collectives of one process that acts as one of two, and counts the bytes that it would send."""

    size = 2

    def __init__(self) -> None:
        self.bytes = 0

    def _counted(self, own: Tensor) -> Tensor:
        self.bytes += own.nbytes
        return own

    all_mean = all_gather = broadcast = _counted


class _Runner:
    """A candidate on its workload: warmed up, and inspected for memory and parts of a step.

    Attributes:
        transient_bytes: Peak of the tensors during a step, beyond the workload's own.
        parts: Seconds of noise and of arithmetic in a further step, as one of two processes.
        forward_passes: Evaluations of the batch in that step.
        flops: Floating point operations of another step.
        reduced_bytes: Bytes that this process would send in that step.
    """

    def __init__(self, candidate: Candidate, workload: Workload) -> None:
        self.candidate = candidate
        self._workload = workload
        self.forward_passes = self.reduced_bytes = 0
        self.transient_bytes = peak_bytes(workload.device, self._start, self.step)
        self._inspect()
        with FlopCounter() as counter:
            self.step()
        self.flops = counter.flops

    def _start(self) -> None:
        self._stepper = self.candidate.make()
        for _ in range(self.candidate.warmup):
            self.step()

    def step(self) -> None:
        self._make_step(lambda: self._workload.losses(self._stepper.batch_repeats))

    def _make_step(self, losses: Closure, **options: Any) -> None:
        if isinstance(self._stepper, ZerothOrder):
            self._stepper.step(losses, repeats_batch=True, **options)
        else:
            self._stepper.step(losses)

    def _inspect(self) -> None:
        watch, counter = Stopwatch(self._workload.device), _ByteCounter()

        def losses() -> Tensor:
            copies = self._stepper.batch_repeats
            self.forward_passes += copies
            return self._workload.losses(copies)

        self._stepper.collectives = counter
        with watch.timing(timed_functions(self._stepper)):
            per_example = isinstance(self._stepper, ZerothOrder) and self._stepper.per_example
            self._make_step(losses, **({"examples": range(self._workload.batch)} if per_example else {}))
        self._stepper.collectives = Collectives()
        self.reduced_bytes = counter.bytes
        self.parts = watch.seconds

    def cost(
        self, steps: Sequence[float], forwards: Sequence[float], inference: float, weights: int, flops: int
    ) -> StepCost:
        """Returns the costs of a step.

        Args:
            steps: Seconds of a step in each measured round, which may be the first rounds alone.
            forwards: Seconds of two plain forwards in each round.
            inference: Peak bytes of a plain forward.
            weights: Bytes of weights and buffers.
            flops: Floating point operations of a plain forward.
        """
        ratios = [step / plain for step, plain in zip(steps, forwards, strict=False)]
        noise, arithmetic = self.parts["noise"], self.parts["arithmetic"]
        return StepCost(
            method=self.candidate.method,
            probing=self.candidate.probing,
            step_over_forwards=Spread(median(ratios), min(ratios), max(ratios)),
            step_seconds=median(steps),
            noise_seconds=noise,
            arithmetic_seconds=arithmetic,
            overhead_seconds=median(steps) - median(forwards) - noise - arithmetic,
            peak_bytes=weights + self.transient_bytes,
            peak_over_inference=(weights + self.transient_bytes) / inference,
            forward_passes=self.forward_passes,
            flops_over_forward=self.flops / flops,
            reduced_bytes=self.reduced_bytes,
        )


def measure(
    workload: Workload, candidates: Sequence[Candidate], precision: str, budget: float, progress: Progress
) -> Measurement:
    """Measures plain forwards and the candidates' steps.

    Args:
        workload: The model and its batch.
        candidates: The methods to measure.
        precision: Name of the workload's precision.
        budget: Seconds for the rounds; there are at least three rounds.
        progress: Shows the progress.
    """
    bar = progress.add_task(f"{precision}: memory", total=(1 + MIN_ROUNDS) * (1 + len(candidates)))

    def advance(activity: str) -> None:
        progress.update(bar, advance=1, description=f"{precision}: {activity}")

    def two_forwards() -> None:
        workload.inference()
        workload.inference()

    workload.inference()  # at its first product cuBLAS allocates a workspace that stays; no method pays for it
    inference = workload.weight_bytes + peak_bytes(workload.device, workload.inference, workload.inference)
    advance("memory")
    runners = []
    for candidate in candidates:
        runners.append(_Runner(candidate, workload))
        advance("memory")
    forwards: list[float] = []
    steps: list[list[float]] = [[] for _ in runners]
    wanted = MIN_ROUNDS
    while len(forwards) < wanted:
        activity, start = f"round {len(forwards) + 1} of {wanted}", time.perf_counter()
        forwards.append(seconds(workload.device, two_forwards))
        advance(activity)
        for runner, own in zip(runners, steps, strict=True):
            if runner.candidate.rounds is None or len(own) < runner.candidate.rounds:
                own.append(seconds(workload.device, runner.step))
            advance(activity)
        if len(forwards) == 2:  # the second round lacks candidates of one round, so its time predicts the others'
            wanted = max(MIN_ROUNDS, round(budget / (time.perf_counter() - start)))
            progress.update(bar, total=(1 + wanted) * (1 + len(runners)))
    with FlopCounter() as counter:
        workload.inference()
    weights = workload.weight_bytes
    costs = [
        runner.cost(own, forwards, inference, weights, counter.flops)
        for runner, own in zip(runners, steps, strict=True)
    ]
    return Measurement(precision, len(forwards), median(forwards), inference, weights, costs)
