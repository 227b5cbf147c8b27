"""A monitor of a run's health, with made reports, weights and metrics."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from zolit_callbacks import HealthMonitor

from tests.helpers.reporting import make_selection
from zolit.optim.report import StepReport

CHANCE = {"val/accuracy": 0.5, "val/loss": 0.9}
LEARNED = {"val/accuracy": 0.8, "val/loss": 0.6}


class Run:
    """Calls a monitor's hooks in the order of a fit, and collects what it says."""

    def __init__(self, monitor: HealthMonitor | None = None, *, value: float = 0.1, frozen: float = 0.0) -> None:
        self.monitor = monitor or HealthMonitor()
        self.module: Any = torch.nn.ParameterDict({"own": torch.full((5210,), value)})
        self.module["frozen"] = torch.nn.Parameter(torch.full((5210,), frozen), requires_grad=False)
        self.trainer: Any = SimpleNamespace(
            strategy=SimpleNamespace(reduce=lambda tensor, reduce_op: tensor),
            callback_metrics={},
            sanity_checking=False,
            state=SimpleNamespace(fn="fit"),
            global_step=0,
            max_steps=1000,
            datamodule=SimpleNamespace(task=SimpleNamespace(metrics=("accuracy",), lower_is_better=False)),
            checkpoint_callback=SimpleNamespace(best_model_path="runs/best.ckpt"),
        )
        self.said: list[str] = []
        self.skips = 0

    def start(self, before: dict[str, float] | None = CHANCE) -> Run:
        if before is not None:
            self.trainer.sanity_checking = True
            self.validate(before)
            self.trainer.sanity_checking = False
        self.monitor.on_train_start(self.trainer, self.module)
        return self

    def step(
        self,
        *,
        move: float = 0.0,
        coefficient: float | None = 1.0,
        losses: tuple[float, ...] = (0.9, 0.8),
        skipped: bool = False,
        backwards: int = 0,
        perturbed: int = 5210,
    ) -> Run:
        """Moves the first ``perturbed`` weights by ``move`` up or down, and reports a step with the rate 1e-3."""
        signs = torch.ones(perturbed)
        signs[::2] = -1
        self.module["own"].data[:perturbed] += move * signs
        self.skips += skipped
        report = StepReport(
            step=self.trainer.global_step,
            loss=losses[0],
            losses=losses,
            coefficients=() if coefficient is None else (0.6 * coefficient, 0.8 * coefficient),
            forward_passes=2,
            total_forward_passes=2,
            skipped=skipped,
            skipped_steps=self.skips,
            learning_rate=1e-3,
            selection=replace(make_selection(None), perturbed_parameters=perturbed),
            total_backward_passes=backwards,
        )
        self.trainer.global_step += 1
        with listening(self.said):
            self.monitor.on_train_batch_end(self.trainer, self.module, {"zo": report}, None, 0)  # type: ignore[dict-item]  # a STEP_OUTPUT
        return self

    def validate(self, metrics: dict[str, float]) -> Run:
        self.trainer.callback_metrics = metrics
        with listening(self.said):
            self.monitor.on_validation_end(self.trainer, self.module)
        return self

    def end(self, metrics: dict[str, float] | None = CHANCE) -> str | None:
        self.monitor.on_train_end(self.trainer, self.module)
        self.trainer.state.fn = "validate"
        if metrics is not None:
            self.validate(metrics)
        return self.monitor.verdict(self.trainer)

    def resumed(self) -> Run:
        monitor = HealthMonitor()
        monitor.load_state_dict(self.monitor.state_dict())
        run = Run(monitor)
        run.module, run.trainer.global_step = self.module, self.trainer.global_step
        return run.start(None)


@contextmanager
def listening(said: list[str]) -> Iterator[None]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    said += [str(warning.message) for warning in caught]
