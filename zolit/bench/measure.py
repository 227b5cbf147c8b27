"""One precision, measured: all entrants take turns, so that what slows the machine down slows all of them down."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Protocol

from rich.progress import Progress
from torch import Tensor

from zolit.bench.memory import peak_bytes
from zolit.bench.results import Measurement, Spread, StepCost
from zolit.bench.stopwatch import Piece, Stopwatch, seconds
from zolit.bench.workload import Workload
from zolit.bench.yardstick import FourPass
from zolit.directions import Directions
from zolit.optimizer import ZerothOrder
from zolit.probing import Closure
from zolit.ranks import Ranks

FEWEST_ROUNDS = 3


class Stepper(Protocol):
    """What an optimizer and the yardstick have in common."""

    @property
    def copies(self) -> int:
        """How often the next call of the closure shall repeat its batch."""

    ranks: Ranks

    def step(self, closure: Closure) -> float:
        """Makes one step."""


def pieces(stepper: object) -> Iterator[Piece]:
    """Yields the functions through which all noise and all arithmetic on weights go."""
    match stepper:
        case ZerothOrder():
            yield Piece(stepper.perturbation, "begin", "noise")
            yield Piece(stepper.perturbation, "draw", "noise")
            yield Piece(stepper.perturbation, "factors", "noise")
            yield Piece(Directions, "perturb", "arithmetic")
            yield Piece(Directions, "perturbed_rows", "arithmetic")
            yield Piece(stepper.update, "apply", "arithmetic")
        case FourPass():
            yield Piece(stepper, "noise", "noise")
            yield Piece(stepper, "move", "arithmetic")


@dataclass(frozen=True)
class Entrant:
    """Somebody who takes part.

    Attributes:
        method: Its name.
        probing: How it probes.
        make: Makes what steps.
        warmup: Steps before any is measured. With two, the first finds out how the model can be probed, the second
            whether probes can be joint.
        rounds: Takes part in so many rounds at most.
    """

    method: str
    probing: str
    make: Callable[[], Stepper]
    warmup: int = 2
    rounds: int | None = None


class _Weighing(Ranks):
    """One process that acts as if it were one of two, and counts the bytes it would send."""

    size = 2

    def __init__(self) -> None:
        self.bytes = 0

    def _weighed(self, own: Tensor) -> Tensor:
        self.bytes += own.nbytes
        return own

    mean = gather = first = _weighed


class _Runner:
    """An entrant on its workload: warm, and looked into, before it takes turns.

    Attributes:
        transient_bytes: The most that tensors held in a step beyond the workload's own.
        parts: Seconds of noise and of arithmetic in another step, that of one of two processes.
        forward_passes: How often that evaluated the batch.
        reduced_bytes: What it would have sent.
    """

    def __init__(self, entrant: Entrant, workload: Workload) -> None:
        self.entrant = entrant
        self._workload = workload
        self.forward_passes = self.reduced_bytes = 0
        self.transient_bytes = peak_bytes(workload.device, self._start, self.step)
        self._inspect()

    def _start(self) -> None:
        self._stepper = self.entrant.make()
        for _ in range(self.entrant.warmup):
            self.step()

    def step(self) -> None:
        self._stepper.step(lambda: self._workload.losses(self._stepper.copies))

    def _inspect(self) -> None:
        watch, weighing = Stopwatch(self._workload.device), _Weighing()

        def losses() -> Tensor:
            copies = self._stepper.copies
            self.forward_passes += copies
            return self._workload.losses(copies)

        self._stepper.ranks = weighing
        with watch.timing(pieces(self._stepper)):
            if isinstance(self._stepper, ZerothOrder) and self._stepper.individual:
                self._stepper.step(losses, examples=range(self._workload.batch))
            else:
                self._stepper.step(losses)
        self._stepper.ranks = Ranks()
        self.reduced_bytes = weighing.bytes
        self.parts = watch.seconds

    def cost(self, steps: Sequence[float], forwards: Sequence[float], inference: float, weights: int) -> StepCost:
        """Sums up: seconds of steps and of forwards, round by round; bytes of inference's peak and of the weights.

        Steps are of the first rounds where there are fewer of them.
        """
        ratios = [step / plain for step, plain in zip(steps, forwards, strict=False)]
        noise, arithmetic = self.parts["noise"], self.parts["arithmetic"]
        return StepCost(
            method=self.entrant.method,
            probing=self.entrant.probing,
            step_over_forwards=Spread(median(ratios), min(ratios), max(ratios)),
            step_seconds=median(steps),
            noise_seconds=noise,
            arithmetic_seconds=arithmetic,
            overhead_seconds=median(steps) - median(forwards) - noise - arithmetic,
            peak_bytes=weights + self.transient_bytes,
            peak_over_inference=(weights + self.transient_bytes) / inference,
            forward_passes=self.forward_passes,
            reduced_bytes=self.reduced_bytes,
        )


def measure(
    workload: Workload, entrants: Sequence[Entrant], precision: str, budget: float, progress: Progress
) -> Measurement:
    """Measures plain forwards and the entrants' steps.

    Args:
        workload: What they work on.
        entrants: Who takes part.
        precision: What the workload's type is called.
        budget: Seconds that rounds may take; three rounds are taken in any case.
        progress: Shows how far it is.
    """
    bar = progress.add_task(f"{precision}: memory", total=(1 + FEWEST_ROUNDS) * (1 + len(entrants)))

    def advance(doing: str) -> None:
        progress.update(bar, advance=1, description=f"{precision}: {doing}")

    def two_forwards() -> None:
        workload.inference()
        workload.inference()

    workload.inference()  # at the first product cuBLAS takes memory for good: that is nobody's
    inference = workload.weight_bytes + peak_bytes(workload.device, workload.inference, workload.inference)
    advance("memory")
    runners = []
    for entrant in entrants:
        runners.append(_Runner(entrant, workload))
        advance("memory")
    forwards: list[float] = []
    steps: list[list[float]] = [[] for _ in runners]
    wanted = FEWEST_ROUNDS
    while len(forwards) < wanted:
        doing, start = f"round {len(forwards) + 1} of {wanted}", time.perf_counter()
        forwards.append(seconds(workload.device, two_forwards))
        advance(doing)
        for runner, own in zip(runners, steps, strict=True):
            if runner.entrant.rounds is None or len(own) < runner.entrant.rounds:
                own.append(seconds(workload.device, runner.step))
            advance(doing)
        if len(forwards) == 2:  # the second has none in it who takes part in the first alone
            wanted = max(FEWEST_ROUNDS, round(budget / (time.perf_counter() - start)))
            progress.update(bar, total=(1 + wanted) * (1 + len(runners)))
    weights = workload.weight_bytes
    costs = [runner.cost(own, forwards, inference, weights) for runner, own in zip(runners, steps, strict=True)]
    return Measurement(precision, len(forwards), median(forwards), inference, weights, costs)
