"""Compares runs that were disturbed and resumed with one that was not: weights, states, curves and summaries."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

_VARIES = ("seconds", "memory", "over", "checkpoint", "logs")
"""Parts of the names of figures that differ between two equal runs: times, memory and paths."""


def curve(folder: Path) -> dict[tuple[str, int], float]:
    """Returns all scalars below a folder of runs by name and step; what was logged later replaces the earlier."""
    points = {}
    for file in sorted(folder.rglob("events.out.tfevents.*"), key=lambda file: file.stat().st_mtime):
        events = EventAccumulator(str(file))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            if not any(part in tag for part in _VARIES) and tag != "epoch":
                points |= {(tag, event.step): event.value for event in events.Scalars(tag)}
    for file in sorted(folder.rglob("metrics.csv"), key=lambda file: file.stat().st_mtime):
        with file.open(newline="") as lines:
            for row in csv.DictReader(lines):
                values = {
                    tag: value for tag, value in row.items() if value and not any(part in tag for part in _VARIES)
                }
                points |= {(tag, int(row["step"])): float(value) for tag, value in values.items() if tag != "epoch"}
    return points


def summary_of(folder: Path) -> dict[str, Any]:
    """Returns the figures of the newest summary below a folder that must not vary."""
    content = json.loads(_newest_summary(folder), parse_constant=lambda name: 1 / 0)
    return {name: value for name, value in content.items() if not any(part in name for part in _VARIES)}


def _newest_summary(folder: Path) -> str:
    return max(folder.rglob("summary.json"), key=lambda file: file.stat().st_mtime).read_text()


def end(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the last and the best checkpoint that the newest summary below a folder names."""
    content = json.loads(_newest_summary(folder))
    last, best = (torch.load(content[name], weights_only=True) for name in ("checkpoint", "best_checkpoint"))
    return last, best


def assert_equal_runs(found: Path, expected: Path) -> None:
    """Asserts that two folders of runs ended alike, to the bit."""
    for mine, theirs in zip(end(found), end(expected), strict=True):
        assert_same(mine["state_dict"], theirs["state_dict"])
        assert_same(mine["optimizer_states"][0]["zo"], theirs["optimizer_states"][0]["zo"])
        assert mine["global_step"] == theirs["global_step"]
        for name, state in theirs["callbacks"].items():
            if name.startswith(("EarlyStopping", "HealthMonitor", "RunSummary")):
                assert_same(mine["callbacks"][name], state)
    assert_same(curve(found), curve(expected))
    assert_same(summary_of(found), summary_of(expected))


def assert_same(found: object, expected: object) -> None:
    """Asserts that two nested values are equal to the bit."""
    if isinstance(expected, dict):
        assert isinstance(found, dict)
        difference = sorted(map(str, found.keys() ^ expected.keys()))
        assert not difference, difference
        for key, value in expected.items():
            try:
                assert_same(found[key], value)
            except AssertionError as error:
                raise AssertionError(f"{key}: {error}") from None
    elif isinstance(expected, list | tuple):
        assert isinstance(found, list | tuple)
        assert_same(dict(enumerate(found)), dict(enumerate(expected)))
    elif isinstance(expected, torch.Tensor):
        assert isinstance(found, torch.Tensor)
        assert torch.equal(found, expected)
    elif isinstance(expected, float) and math.isnan(expected):
        assert isinstance(found, float)
        assert math.isnan(found)
    else:
        assert found == expected, f"{found} != {expected}"
