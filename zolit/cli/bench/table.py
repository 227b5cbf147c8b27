"""The benchmark's table in the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from zolit.cli.bench.results import Measurement, Setting

_MIB = 2**20


def show(console: Console, setting: Setting, measurement: Measurement) -> None:
    """Prints a table of one precision: times relative to two plain forwards, memory relative to inference."""
    unit = measurement.forwards_seconds
    console.print(
        f"[bold]{setting.model}[/], {measurement.precision}, {setting.parameters:,} weights, "
        f"batch of {setting.batch} x {setting.tokens} tokens\n"
        f"{setting.device}, torch {setting.torch}, threads: {setting.threads}\n"
        f"time, and its parts besides the forwards: in units of two plain forwards ({unit:.3g} s), median of "
        f"{measurement.rounds} rounds (four-pass: one)\n"
        f"memory: in units of a plain forward's peak ({measurement.inference_peak_bytes / _MIB:.4g} MiB)\n"
        "flops: floating point operations, in units of one plain forward's",
        highlight=False,
    )
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False)
    table.add_column("method")
    table.add_column("probing")
    for heading in (
        "time",
        "range",
        "noise",
        "arithmetic",
        "overhead",
        "s",
        "memory",
        "MiB",
        "forwards",
        "flops",
        "bytes sent",
    ):
        table.add_column(heading, justify="right")
    for cost in measurement.steps:
        ratio = cost.step_over_forwards
        parts = (cost.noise_seconds, cost.arithmetic_seconds, cost.overhead_seconds)
        table.add_row(
            cost.method,
            cost.probing,
            f"[bold]{ratio.median:.2f}",
            f"{ratio.least:.2f}-{ratio.most:.2f}",
            *(f"{part / unit:.2f}" for part in parts),
            f"{cost.step_seconds:.3g}",
            f"[bold]{cost.peak_over_inference:.2f}",
            f"{cost.peak_bytes / _MIB:.4g}",
            str(cost.forward_passes),
            f"{cost.flops_over_forward:.2f}",
            str(cost.reduced_bytes),
        )
    console.print(table)
