from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NoReturn

import lightning.pytorch as pl
import pytest
import torch
from zolit_callbacks import MemoryProfiler, memory

from tests.helpers.reporting import ReportingModule, Runs

MIB = 2**20
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs the kernel's high-water mark")


def module(runs: Runs, **held: int) -> ReportingModule:
    return runs.module(lambda step: None, **held)


class ToyGauge:
    """A gauge with prepared peaks."""

    def __init__(self, held: int, *peaks: int) -> None:
        self.at_start = held
        self.script = list(peaks)
        self.resets = 0

    def reset(self) -> None:
        self.resets += 1

    def held(self) -> int:
        return self.at_start

    def peaks(self) -> dict[str, int]:
        return {"peak": self.script.pop(0)}


def with_gauge(monkeypatch: pytest.MonkeyPatch, gauge: Any) -> None:
    monkeypatch.setattr(memory, "gauge_for", lambda device: gauge)


@linux
def test_peaks_of_a_real_run(runs: Runs) -> None:
    profiler = MemoryProfiler(every_n_steps=5)
    runs.fit(profiler, module(runs, inference_bytes=64 * MIB, step_bytes=128 * MIB), steps=10)
    peaks = profiler.peak_bytes
    assert peaks["fit"] - peaks["inference"] == pytest.approx(64 * MIB, abs=8 * MIB)
    assert profiler.split_bytes["activations"] == pytest.approx(128 * MIB, abs=8 * MIB)
    assert profiler.step_over_inference == pytest.approx(2.0, abs=0.15)
    assert profiler.peak_memory_bytes == peaks["fit"]
    assert runs.scalars("memory/fit_peak") == pytest.approx(dict.fromkeys((0, 4, 9), peaks["fit"] / MIB), rel=0.05)
    assert runs.scalars("memory/step_over_inference") == {0: pytest.approx(profiler.step_over_inference)}


@linux
def test_freed_heap_memory_does_not_count_for_the_process(runs: Runs) -> None:
    size = 28 * MIB
    torch.ones(size + MIB, dtype=torch.uint8)  # after this, glibc keeps smaller freed blocks
    profiler = MemoryProfiler()
    runs.fit(profiler, module(runs, inference_bytes=size, step_bytes=size), steps=1)
    assert profiler.split_bytes["activations"] == pytest.approx(size, abs=6 * MIB)
    assert profiler.step_over_inference == pytest.approx(1.0, abs=0.2)


@linux
def test_validation_has_its_own_peak(runs: Runs) -> None:
    profiler = MemoryProfiler(every_n_steps=5)
    model = runs.validating_module(lambda step: None)
    model.validation_bytes = 128 * MIB
    options = {"val_batches": range(1), "val_check_interval": 3, "num_sanity_val_steps": 1}
    runs.fit(profiler, model, steps=10, **options)
    peaks = profiler.peak_bytes
    assert peaks["validation"] - peaks["fit"] == pytest.approx(128 * MIB, abs=8 * MIB)
    assert profiler.peak_memory_bytes == peaks["validation"]
    assert list(runs.scalars("memory/validation_peak")) == list(runs.scalars("val/loss")) == [2, 5, 8]


@linux
def test_a_peak_between_two_log_entries_is_measured(runs: Runs) -> None:
    profiler = MemoryProfiler(every_n_steps=5)

    class Spiking(runs.module):
        def training_step(self, batch: int, batch_idx: int) -> dict[str, Any]:
            self.step_bytes = 128 * MIB if self.trainer.global_step in (6, 11) else 0
            return super().training_step(batch, batch_idx)

    runs.fit(profiler, Spiking(lambda step: None), steps=12)
    fit = runs.scalars("memory/fit_peak")
    assert list(fit) == [0, 4, 9]
    assert fit[9] - fit[4] == pytest.approx(128, abs=8)
    # The step after the last log entry also counts, although nothing is logged about it.
    assert profiler.peak_bytes["fit"] / MIB - fit[4] == pytest.approx(128, abs=8)


def test_a_validation_does_not_lose_the_steps_before_it(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    # Inference and step 0; up to the entry at step 4, with one validation; up to that at step 9, with two; the end.
    peaks = (60, 70, 90, 80, 75, 72, 81, 73, 82, 74, 65)
    gauge = ToyGauge(50 * MIB, *(peak * MIB for peak in peaks))
    with_gauge(monkeypatch, gauge)
    profiler = MemoryProfiler(every_n_steps=5)
    options = {"val_batches": range(1), "val_check_interval": 3, "num_sanity_val_steps": 0}
    runs.fit(profiler, runs.validating_module(lambda step: None), steps=10, **options)
    assert runs.scalars("memory/fit_peak") == {0: 70.0, 4: 90.0, 9: 74.0}
    assert runs.scalars("memory/validation_peak") == {2: 80.0, 5: 81.0, 8: 82.0}
    assert profiler.peak_bytes == {"inference": 60 * MIB, "fit": 90 * MIB, "validation": 82 * MIB}


def test_split_and_ratio(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gauge(monkeypatch, ToyGauge(50 * MIB, 60 * MIB, 70 * MIB, 65 * MIB))
    profiler = MemoryProfiler()
    model = module(runs)
    model.head = torch.nn.Linear(1, 1, bias=False)
    model.head.weight = torch.nn.Parameter(torch.zeros(256, 1024))  # 1 MiB
    model.tied = model.head
    model.zo.scratch_bytes = lambda: 2 * MIB
    runs.fit(profiler, model, steps=2)
    small = 10 * 4 + 5 * 8  # the module's own weight and buffer
    assert profiler.split_bytes == {
        "weights": MIB + small,
        "scratch": 2 * MIB,
        "process": 47 * MIB - small,
        "activations": 20 * MIB,
    }
    assert sum(profiler.split_bytes.values()) == 70 * MIB
    assert profiler.step_over_inference == pytest.approx(23 / 13, rel=1e-4)
    assert runs.scalars("memory/activations") == {0: 20.0}
    assert runs.scalars("memory/inference_peak") == {0: 60.0}


def test_inference_is_evaluated_as_training_steps_are(runs: Runs) -> None:
    model = module(runs)
    runs.fit(MemoryProfiler(), model, steps=3, precision="bf16-mixed", logger=False)
    assert model.autocast == [True, True]


def test_a_resumed_run_keeps_its_peaks_and_measures_inference_again(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    gauges = [ToyGauge(50, 60, 90, 55), ToyGauge(40, 50, 70, 45)]
    monkeypatch.setattr(memory, "gauge_for", lambda device: gauges.pop(0))
    profiler = runs.resume(MemoryProfiler, module(runs), stop=10, steps=20)
    assert profiler.peak_bytes == {"inference": 60, "fit": 90}
    assert profiler.step_over_inference == (70 - 0) / (50 - 0)


def test_other_steps_are_not_logged(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    gauge = ToyGauge(50, 60, 70, 80, 75)
    with_gauge(monkeypatch, gauge)
    runs.fit(MemoryProfiler(every_n_steps=6), module(runs), steps=8, logger=False)
    assert gauge.script == []  # inference, step 0, step 5, end of the fit
    assert gauge.resets == 2 + 3


def test_validate_alone(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gauge(monkeypatch, ToyGauge(50, 60))
    profiler = MemoryProfiler()
    trainer = pl.Trainer(accelerator="cpu", logger=False, callbacks=[profiler], enable_progress_bar=False)
    trainer.validate(runs.validating_module(lambda step: None), range(1), verbose=False)
    assert profiler.peak_bytes == {"validation": 60}


def test_without_a_resettable_peak_memory_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, text: str, encoding: str) -> NoReturn:
        raise PermissionError

    monkeypatch.setattr(Path, "write_text", refuse)
    gauge = memory.gauge_for(torch.device("cpu"))
    assert isinstance(gauge, memory._SampledGauge)
    gauge.reset()
    held = torch.ones(64 * MIB, dtype=torch.uint8)
    assert gauge.peaks()["peak"] - gauge._start == pytest.approx(64 * MIB, abs=8 * MIB)
    del held


def test_cuda_reports_what_its_allocator_reserved(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 10 * MIB)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 20 * MIB)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 30 * MIB)
    gauge = memory.gauge_for(torch.device("cuda", 0))
    with_gauge(monkeypatch, gauge)
    profiler = MemoryProfiler()
    runs.fit(profiler, module(runs), steps=1)
    assert profiler.peak_bytes == {"inference": 20 * MIB, "fit": 20 * MIB}
    assert profiler.reserved_bytes == {"inference": 30 * MIB, "fit": 30 * MIB}
    assert runs.scalars("memory/fit_reserved") == {0: 30.0}
    assert profiler.peak_memory_bytes == 20 * MIB
