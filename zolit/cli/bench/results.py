"""The results of a benchmark, and their JSON file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from zolit import files


@dataclass(frozen=True)
class Setting:
    """The model, the batch and the machine of a benchmark.

    Attributes:
        model: Last part of the model's folder or hub id.
        parameters: Number of weights.
        device: Name of the processor.
        torch: Version of torch.
        threads: Threads of torch on a CPU.
        batch: Examples in the batch.
        tokens: Tokens of each example.
        perturbation: The option ``perturbation``.
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
    """Median and range of a ratio of times, with one value for each round."""

    median: float
    least: float
    most: float


@dataclass(frozen=True)
class StepCost:
    """The costs of a method's step.

    Attributes:
        method: Name of the method; ``four-pass`` is the baseline.
        probing: Name of its probing.
        step_over_forwards: Time of a step over the time of two plain forwards in the same round.
        step_seconds: Median time of a step. The two plain forwards and the three parts below add up to it.
        noise_seconds: Time to draw directions.
        arithmetic_seconds: Time to compute perturbed weights and to update the weights.
        overhead_seconds: The remaining time; negative if the step's forwards are faster than plain ones.
        peak_bytes: Peak memory of tensors during a step.
        peak_over_inference: The same, over the peak during a plain forward.
        forward_passes: Evaluations of the batch in a step.
        flops_over_forward: Floating point operations of a step over those of one plain forward; see ``FlopCounter``.
        reduced_bytes: Bytes that a data-parallel rank sends to all-reduces in a step.
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
    flops_over_forward: float
    reduced_bytes: int


@dataclass(frozen=True)
class Measurement:
    """The results in one precision.

    Attributes:
        precision: Precision of the weights, as in trainer.precision.
        rounds: Number of rounds; in each, all candidates were timed in turn.
        forwards_seconds: Median time of two plain forwards.
        inference_peak_bytes: Peak memory of tensors during a plain forward.
        weight_bytes: Bytes of weights and buffers.
        steps: Costs of each method.
    """

    precision: str
    rounds: int
    forwards_seconds: float
    inference_peak_bytes: int
    weight_bytes: int
    steps: Sequence[StepCost]


def write_json(path: Path, setting: Setting, measurements: Sequence[Measurement]) -> None:
    """Writes all results: the fields of ``Setting``, and ``measurements``, one for each precision."""
    content = {**asdict(setting), "measurements": [asdict(measurement) for measurement in measurements]}
    files.write_json(path, content)
