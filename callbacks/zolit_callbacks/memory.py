"""Measures the memory of a run: the peak of each phase, its parts, and its ratio to plain inference."""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import psutil
import torch
from jsonargparse.typing import PositiveInt
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import nn
from typing_extensions import override

from zolit_callbacks.boards import is_due, log_scalars

_MIB = 2**20


class Gauge(ABC):
    """Measures the memory that is held on one device, in bytes."""

    @abstractmethod
    def reset(self) -> None:
        """Starts a new peak at the memory that is held now."""

    @abstractmethod
    def held(self) -> int:
        """Returns the memory that is held now."""

    @abstractmethod
    def peaks(self) -> dict[str, int]:
        """Returns the peak since the last reset, ``peak``.

        On a device whose allocator keeps freed memory, ``reserved`` is the peak of the memory that the allocator holds.
        """


class _CudaGauge(Gauge):
    """Uses the statistics of CUDA's caching allocator."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def reset(self) -> None:
        torch.cuda.reset_peak_memory_stats(self._device)

    def held(self) -> int:
        return torch.cuda.memory_allocated(self._device)

    def peaks(self) -> dict[str, int]:
        return {
            "peak": torch.cuda.max_memory_allocated(self._device),
            "reserved": torch.cuda.max_memory_reserved(self._device),
        }


class _LinuxGauge(Gauge):
    """Uses the process's resident memory and the kernel's high-water mark, which writing "5" resets (man 5 proc)."""

    def reset(self) -> None:
        # glibc keeps tens of MiB of freed activations: they would count as held, and new activations would not count.
        ctypes.CDLL(None).malloc_trim(0)  # not kept: a copy of the callbacks would have to copy it
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def held(self) -> int:
        return self._status("VmRSS")

    def peaks(self) -> dict[str, int]:
        return {"peak": self._status("VmHWM")}

    def _status(self, field: str) -> int:
        with Path("/proc/self/status").open(encoding="utf-8") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


class _SampledGauge(Gauge):
    """Samples the process's resident memory where the kernel has no resettable peak; the peak is too low."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._start = self.held()

    def reset(self) -> None:
        self._start = self.held()

    def held(self) -> int:
        return int(self._process.memory_info().rss)

    def peaks(self) -> dict[str, int]:
        return {"peak": max(self._start, self.held())}


def gauge_for(device: torch.device) -> Gauge:
    """Returns the most exact gauge for a device. Its peak starts at the first reset."""
    if device.type == "cuda":
        return _CudaGauge(device)
    try:
        gauge = _LinuxGauge()
        gauge.reset()
    except (AttributeError, OSError):  # no glibc, no Linux, or a sandbox
        return _SampledGauge()
    return gauge


def _weight_bytes(module: nn.Module) -> int:
    """Returns the bytes of a module's parameters and buffers; tied ones count once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))


class MemoryProfiler(pl.Callback):
    """Measures a run's memory, its parts, and the ratio of a step's peak to that of inference.

    Three phases of a run have a peak:

    - ``inference``: one evaluation of the loss on the first training batch, at the start of the fit. An unmeasured
      evaluation comes first, so that lazily loaded weights and libraries are in memory.
    - ``fit``: the steps since the last log entry and the work between them (loading batches, checkpoints, other
      callbacks).
    - ``validation``: one validation.

    On CUDA, peaks are the memory of tensors (and, separately, the memory that the allocator reserved) on this rank's
    device. Elsewhere they are the resident memory of this process, without data-loader workers. Linux provides the
    kernel's high-water mark. On other systems memory is sampled at the end of each phase, which misses memory that was
    freed before.

    Scalars, in MiB, at the first step and every ``every_n_steps`` steps:

    - ``memory/fit_peak``, and on CUDA ``memory/fit_reserved``,
    - ``memory/weights``: parameters and buffers,
    - ``memory/scratch``: noise, scratch buffers and copies that the optimizer holds between steps,
    - ``memory/process``: memory besides weights and scratch when inference was measured: on a CPU the interpreter, its
      libraries and the data, on CUDA almost nothing,
    - ``memory/activations``: activations and the rest, which is ``fit_peak`` minus the three above.

    Once, at the first step: ``memory/inference_peak`` (``memory/inference_reserved``) and
    ``memory/step_over_inference``. The latter is the peak of the first step over that of inference on the same batch.
    ``process`` is subtracted from both, so that the size of the interpreter does not hide the difference. After each
    validation: ``memory/validation_peak`` (``memory/validation_reserved``).

    Example:
        trainer:
          callbacks:
            - class_path: zolit_callbacks.MemoryProfiler
              init_args:
                every_n_steps: 50

    Args:
        every_n_steps: Logging interval, in steps.

    Attributes:
        peak_bytes: Highest peak of each phase so far, keys ``inference``, ``fit``, ``validation``; kept in checkpoints.
        reserved_bytes: The same for the memory that CUDA's allocator reserved; empty elsewhere.
        split_bytes: Parts of the last logged peak of ``fit``, keys ``weights``, ``scratch``, ``process``,
            ``activations``.
        step_over_inference: A step's peak over inference's; None before the first step.
    """

    def __init__(self, every_n_steps: PositiveInt = 50) -> None:
        super().__init__()
        self._every_n_steps = every_n_steps
        self.peak_bytes: dict[str, int] = {}
        self.reserved_bytes: dict[str, int] = {}
        self.split_bytes: dict[str, int] = {}
        self.step_over_inference: float | None = None
        self._window: dict[str, int] = {}  # peaks of fit since the last log entry, before a validation reset the gauge
        self._fitting = False  # whether this run trains and has measured inference
        self._stepped = False  # whether this run has measured its first step

    @property
    def peak_memory_bytes(self) -> int:
        """The highest peak of all phases; 0 before the first."""
        return max(self.peak_bytes.values(), default=0)

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Chooses the gauge for this run's device."""
        self._gauge = gauge_for(trainer.strategy.root_device)
        self._window = {}
        self._fitting = self._stepped = False

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Measures inference on the first batch of this run."""
        if self._fitting:
            return
        self._fitting = True
        module: Any = pl_module
        with trainer.precision_plugin.train_step_context():
            module.objective(batch)
            self._gauge.reset()
            held = self._gauge.held()
            module.objective(batch)
        self._inference = self._gauge.peaks()
        self._process = max(held - _weight_bytes(pl_module) - module.zo.scratch_bytes(), 0)
        self._raise_peaks("inference", self._inference)
        self._gauge.reset()

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Logs the peak of the steps, at the first step and at each due step."""
        if self._stepped and not is_due(trainer, self._every_n_steps):
            return
        self._close_window()
        peaks, self._window = self._window, {}
        weights, scratch = _weight_bytes(pl_module), cast("Any", pl_module).zo.scratch_bytes()
        self.split_bytes = {
            "weights": weights,
            "scratch": scratch,
            "process": self._process,
            "activations": max(peaks["peak"] - weights - scratch - self._process, 0),
        }
        scalars = _scalars("fit", peaks) | {f"memory/{part}": size / _MIB for part, size in self.split_bytes.items()}
        if not self._stepped:
            self._stepped = True
            # The denominator is positive: inference holds at least the weights beyond the process.
            ratio = (peaks["peak"] - self._process) / (self._inference["peak"] - self._process)
            self.step_over_inference = ratio
            scalars |= _scalars("inference", self._inference) | {"memory/step_over_inference": ratio}
        log_scalars(trainer, scalars)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Includes the steps since the last log entry in the peaks."""
        self._close_window()

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts a new peak for the validation."""
        if self._fitting:
            self._close_window()
        self._gauge.reset()

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the validation's peak, and starts a new one."""
        peaks = self._gauge.peaks()
        self._raise_peaks("validation", peaks)
        if self._fitting:  # the sanity check and `trainer.validate` have no step to log at
            log_scalars(trainer, _scalars("validation", peaks))
        self._gauge.reset()

    @override
    def state_dict(self) -> dict[str, Any]:
        """Returns the peaks so far."""
        return {"peak_bytes": dict(self.peak_bytes), "reserved_bytes": dict(self.reserved_bytes)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the peaks that ``state_dict`` returned; inference and the first step are measured again."""
        self.peak_bytes = dict(state_dict["peak_bytes"])
        self.reserved_bytes = dict(state_dict["reserved_bytes"])

    def _close_window(self) -> None:
        """Adds the peaks since the last reset to those of fit, and starts new ones."""
        peaks = self._gauge.peaks()
        self._window = {kind: max(size, self._window.get(kind, 0)) for kind, size in peaks.items()}
        self._raise_peaks("fit", peaks)
        self._gauge.reset()

    def _raise_peaks(self, stage: str, peaks: dict[str, int]) -> None:
        """Raises the peaks of a phase (``stage``) to the measured ones."""
        self.peak_bytes[stage] = max(peaks["peak"], self.peak_bytes.get(stage, 0))
        if "reserved" in peaks:
            self.reserved_bytes[stage] = max(peaks["reserved"], self.reserved_bytes.get(stage, 0))


def _scalars(stage: str, peaks: dict[str, int]) -> dict[str, float]:
    """Returns the peaks of a phase (``stage``) by their logged names, in MiB."""
    return {f"memory/{stage}_{kind}": size / _MIB for kind, size in peaks.items()}
