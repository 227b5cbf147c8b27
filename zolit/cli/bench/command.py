"""The options of ``zolit bench``."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jsonargparse import ArgumentParser
from jsonargparse.typing import NonNegativeFloat, PositiveInt
from rich.console import Console
from rich.progress import Progress

import zolit.methods
from zolit.cli.bench.baseline import FourPass
from zolit.cli.bench.measure import Candidate, measure
from zolit.cli.bench.results import Setting, write_json
from zolit.cli.bench.table import show
from zolit.cli.bench.workload import Workload
from zolit.cli.parser import CommandParser
from zolit.cli.trust import check_files
from zolit.errors import require, require_one_of
from zolit.methods.base import Probing
from zolit.models.loading import check_model_path
from zolit.optim.perturbation.base import Perturbation
from zolit.optim.perturbation.gaussian import Gaussian
from zolit.optim.perturbation.gaussian_pool import GaussianPool

# These two would add coefficients to the model, on which all other methods are measured.
METHODS: dict[str, type[zolit.ZerothOrder]] = {
    name.lower(): getattr(zolit.methods, name) for name in zolit.methods.__all__ if name not in ("ZOAct", "LinearProbe")
}


PRECISIONS = {"32-true": torch.float32, "bf16-true": torch.bfloat16}


PERTURBATIONS: dict[str, Callable[[], Perturbation | None]] = {
    "default": lambda: None,
    "gaussian": Gaussian,
    "pool": GaussianPool,
}


# The rate is too small to change the model, but the update is computed.
LR, EPS = 1e-7, 1e-3
WIDTH = 120  # columns of the table in a file or a pipe


@dataclass
class Model:
    """The model to measure.

    Args:
        name_or_path: Folder or hub id of a causal language model.
    """

    name_or_path: str


def bench(
    model: Model,
    methods: str = "mezo,curvzo",
    precision: str = "bf16-true",
    batch: PositiveInt = 16,
    tokens: PositiveInt = 40,
    seconds: NonNegativeFloat = 15.0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    perturbation: Literal["default", "gaussian", "pool"] = "default",
    probing: str = "streamed",
    json: Path | None = None,
) -> None:
    """Measures a step of each method, and of plain four-pass MeZO, relative to two plain forwards of the same batch.

    Args:
        model: The model to measure.
        methods: Names of methods, separated by commas.
        precision: 32-true, bf16-true, or both separated by a comma.
        batch: Examples in a batch.
        tokens: Tokens of each example.
        seconds: Time for the rounds of each precision; there are at least three rounds.
        device: Device of the model; auto is CUDA if there is a CUDA device.
        perturbation: Law of the directions: gaussian, pool, or default, the method's own. Some methods fix their law.
        probing: streamed, joint, in_place, or several separated by commas.
        json: File for all results; null writes none.

    Raises:
        UserError: If an option has an unknown value.
    """
    name = model.name_or_path
    check_model_path(name)
    chosen_methods = _parse_list("methods", methods, METHODS)
    chosen_precisions = _parse_list("precision", precision, PRECISIONS)
    chosen_probings = _parse_list("probing", probing, get_args(Probing))
    require(device != "cuda" or torch.cuda.is_available(), "device: there is no CUDA device here; use cpu or auto")
    require(json is None or json.parent.is_dir(), f"json: there is no folder for the file {json}")
    place = torch.device("cpu" if device == "cpu" or not torch.cuda.is_available() else "cuda")
    console, measurements = Console(width=None if sys.stdout.isatty() else WIDTH), []
    for kind in chosen_precisions:
        workload = Workload(name, dtype=PRECISIONS[kind], device=place, batch=batch, tokens=tokens)
        candidates = [
            Candidate(method, way, partial(_make, METHODS[method], workload, way, perturbation))
            for method in chosen_methods
            for way in _ways(METHODS[method], chosen_probings)
        ]
        baseline = partial(FourPass, workload.model, lr=LR, eps=EPS)
        candidates.append(Candidate("four-pass", "in_place", baseline, warmup=0, rounds=1))
        with Progress(console=Console(stderr=True), transient=True) as progress:
            measurements.append(measure(workload, candidates, kind, seconds, progress))
        setting = Setting(
            model=Path(name).resolve().name,
            parameters=workload.parameters,
            device=_device_name(place),
            torch=torch.__version__,
            threads=torch.get_num_threads(),
            batch=batch,
            tokens=tokens,
            perturbation=perturbation,
        )
        show(console, setting, measurements[-1])
    if json is not None:
        write_json(json, setting, measurements)


def _make(method: type[zolit.ZerothOrder], workload: Workload, way: str, law: str) -> zolit.ZerothOrder:
    options: dict[str, Any] = {"lr": LR, "eps": EPS, "seed": 0}
    if _has_option(method, "probing"):
        options["probing"] = way
    if _has_option(method, "perturbation"):
        options["perturbation"] = PERTURBATIONS[law]()
    return method(workload.model, **options)


def _has_option(method: type[zolit.ZerothOrder], option: str) -> bool:
    """Returns whether a method has an option; jsonargparse also finds the options that methods share."""
    parser = ArgumentParser()
    parser.add_class_arguments(method, skip={"model"})
    return option in parser.get_defaults()


def _ways(method: type[zolit.ZerothOrder], chosen: list[str]) -> list[str]:
    """Returns the ways of probing to measure: the chosen ones, or the only one of a method without a choice."""
    if _has_option(method, "probing"):
        return chosen
    return ["per_example" if method is zolit.methods.PerExample else "none"]


def _parse_list(option: str, text: str, known: Collection[str]) -> list[str]:
    """Splits a list at its commas, and checks that each value is known."""
    values = list(dict.fromkeys(value.strip() for value in text.split(",")))
    for value in values:
        require_one_of(option, value, known)
    return values


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    listing = Path("/proc/cpuinfo")  # on Linux, where platform.processor() is empty
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def run(args: list[str]) -> None:
    """Parses the arguments after ``zolit bench``, and measures."""
    parser = CommandParser(prog="zolit bench", description=(bench.__doc__ or "").splitlines()[0])
    parser.add_function_arguments(bench, as_group=False)
    check_files(args)
    bench(**parser.instantiate_classes(parser.parse_args(args)))
