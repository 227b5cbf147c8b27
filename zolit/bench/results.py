"""What a run of the benchmark finds out, and the file that it is kept in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Setting:
    """Where and on what was measured.

    Attributes:
        model: The last part of its folder or hub id.
        parameters: How many weights it has.
        device: The processor's name.
        torch: Version of torch.
        threads: How many torch computes with on a CPU.
        batch: Examples.
        tokens: Tokens of each.
        perturbation: The law of directions that was asked for.
    """

    model: str
    parameters: int
    device: str
    torch: str
    threads: int
    batch: int
    tokens: int
    perturbation: str


@dataclass(frozen=True)
class Spread:
    """A ratio of times that was taken once a round."""

    median: float
    least: float
    most: float


@dataclass(frozen=True)
class StepCost:
    """What a step of one method costs.

    Attributes:
        method: Its name; ``four-pass`` is the yardstick.
        probing: How it probes.
        step_over_forwards: Time of a step over that of two plain forwards, measured in the same round.
        step_seconds: Median time of a step; the parts below, and the two plain forwards, add up to it.
        noise_seconds: Of it, time to draw directions.
        arithmetic_seconds: Of it, time to compute perturbed weights and to update the weights.
        overhead_seconds: The rest of it; below 0 where the forwards of a step are faster than plain ones.
        peak_bytes: The most that tensors held during a step.
        peak_over_inference: The same over what they held during a plain forward.
        forward_passes: How often a step evaluates the batch.
        reduced_bytes: What a data-parallel rank gives to all-reduces in a step.
    """

    method: str
    probing: str
    step_over_forwards: Spread
    step_seconds: float
    noise_seconds: float
    arithmetic_seconds: float
    overhead_seconds: float
    peak_bytes: int
    peak_over_inference: float
    forward_passes: int
    reduced_bytes: int


@dataclass(frozen=True)
class Measurement:
    """What was measured in one precision.

    Attributes:
        precision: Of the weights, as the trainer calls it.
        rounds: How often all was timed in turn.
        forwards_seconds: Median time of two plain forwards.
        inference_peak_bytes: The most that tensors held during a plain forward.
        weight_bytes: What weights and buffers take.
        steps: The methods.
    """

    precision: str
    rounds: int
    forwards_seconds: float
    inference_peak_bytes: int
    weight_bytes: int
    steps: Sequence[StepCost]


def write_json(path: Path, setting: Setting, measurements: Sequence[Measurement]) -> None:
    """Writes all that was found out: the fields of ``Setting``, and ``measurements``, one for each precision."""
    content = {**asdict(setting), "measurements": [asdict(measurement) for measurement in measurements]}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
