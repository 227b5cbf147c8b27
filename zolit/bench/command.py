"""The command: its options, and what they stand for."""

from __future__ import annotations

import inspect
import platform
import re
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

import torch
from jsonargparse import ArgumentParser
from jsonargparse.typing import NonNegativeFloat, PositiveInt
from rich.console import Console
from rich.progress import Progress
from typing_extensions import override

import zolit.methods
from zolit.bench.measure import Entrant, measure
from zolit.bench.results import Setting, write_json
from zolit.bench.table import show
from zolit.bench.workload import Workload
from zolit.bench.yardstick import FourPass
from zolit.errors import require, require_one_of
from zolit.perturbation import Gaussian, GaussianPool, Perturbation
from zolit.pretrained import check_model_path
from zolit.probing import Probing

# ZO-Act would add to the model that all others are measured on.
METHODS = {name.lower(): getattr(zolit.methods, name) for name in zolit.methods.__all__ if name != "ZOAct"}
PRECISIONS = {"32-true": torch.float32, "bf16-true": torch.bfloat16}
PERTURBATIONS: dict[str, Callable[[], Perturbation | None]] = {
    "default": lambda: None,
    "gaussian": Gaussian,
    "pool": GaussianPool,
}

# So small a rate leaves the model as it is, and the update is made all the same.
LR, EPS = 1e-7, 1e-3

WIDTH = 120  # of the table in a file or a pipe


@dataclass
class Model:
    """What is tuned.

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
    """Measures a step of each method, and of plain four-pass MeZO, against two plain forwards of the same batch.

    Args:
        model: What is tuned.
        methods: Methods by their names, with commas between them.
        precision: 32-true, bf16-true, or both with a comma between them.
        batch: Examples in a batch.
        tokens: Tokens of each example.
        seconds: Time for the rounds of each precision; at least three are made.
        device: Where to; auto is CUDA where there is one.
        perturbation: The law of directions; default is the method's own, a pool.
        probing: streamed, joint and in_place, or some of them, with commas between them.
        json: Write all that was found out to this file.

    Raises:
        UserError: If an option names what is not there.
    """
    name = model.name_or_path
    check_model_path(name)
    chosen_methods = _listed("methods", methods, METHODS)
    chosen_precisions = _listed("precision", precision, PRECISIONS)
    chosen_probings = _listed("probing", probing, get_args(Probing))
    require(device != "cuda" or torch.cuda.is_available(), "device: there is no CUDA device here; take cpu or auto")
    require(json is None or json.parent.is_dir(), f"json: there is no folder for the file {json}")
    place = torch.device("cpu" if device == "cpu" or not torch.cuda.is_available() else "cuda")
    console, measurements = Console(width=None if sys.stdout.isatty() else WIDTH), []
    for kind in chosen_precisions:
        workload = Workload(name, dtype=PRECISIONS[kind], device=place, batch=batch, tokens=tokens)
        entrants = [
            Entrant(method, way, partial(_make, METHODS[method], workload, way, perturbation))
            for method in chosen_methods
            for way in (chosen_probings if _probes_in_several_ways(METHODS[method]) else [_only_way(METHODS[method])])
        ]
        yardstick = partial(FourPass, workload.model, lr=LR, eps=EPS)
        entrants.append(Entrant("four-pass", "in_place", yardstick, warmup=0, rounds=1))
        with Progress(console=Console(stderr=True), transient=True) as progress:
            measurements.append(measure(workload, entrants, kind, seconds, progress))
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


def _make(method: Callable[..., zolit.ZerothOrder], workload: Workload, way: str, law: str) -> zolit.ZerothOrder:
    options: dict[str, Any] = {"lr": LR, "eps": EPS, "seed": 0}
    if _probes_in_several_ways(method):
        options["probing"] = way
    if "perturbation" in inspect.signature(method).parameters:
        options["perturbation"] = PERTURBATIONS[law]()
    return method(workload.model, **options)


def _probes_in_several_ways(method: Callable[..., zolit.ZerothOrder]) -> bool:
    """Whether a method's prober is the user's to choose."""
    return "probing" in inspect.signature(method).parameters


def _only_way(method: Callable[..., zolit.ZerothOrder]) -> str:
    """Returns how a method probes that leaves no choice."""
    return "individual" if method is zolit.methods.PerExample else "none"


def _listed(option: str, text: str, known: Collection[str]) -> list[str]:
    """Splits a list with commas, each of its members among the known."""
    values = list(dict.fromkeys(value.strip() for value in text.split(",")))
    for value in values:
        require_one_of(option, value, known)
    return values


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    listing = Path("/proc/cpuinfo")  # Linux alone; its platform.processor() is empty
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


class _Parser(ArgumentParser):
    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        sentence = re.sub(r'^Parser key "([^"]+)":', r"\1:", " ".join(message.split()))
        self.exit(2, f"zolit: error: {sentence}; `zolit bench --help` lists the options\n")


def run(args: list[str]) -> None:
    """Parses the arguments after ``zolit bench``, and measures."""
    parser = _Parser(prog="zolit bench", description=(bench.__doc__ or "").splitlines()[0])
    parser.add_function_arguments(bench, as_group=False)
    bench(**parser.instantiate_classes(parser.parse_args(args)))
