"""``zolit bench`` on the quickstart's model: its results, its table, and errors in its options."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from zolit.cli.main import main
from zolit.quickstart import MODEL

Bench = Callable[..., None]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Returns a function that runs a short benchmark of the quickstart's model from the command line."""

    def call(*options: str, model: str = str(MODEL)) -> None:
        few = ("--tokens=8", "--batch=2", "--seconds=0.2", "--device=cpu")
        monkeypatch.setattr(sys, "argv", ["zolit", "bench", f"--model.name_or_path={model}", *few, *options])
        main()

    return call


SETTING = {
    "model": str,
    "parameters": int,
    "device": str,
    "torch": str,
    "threads": int,
    "batch": int,
    "tokens": int,
    "perturbation": str,
    "measurements": list,
}
MEASUREMENT = {
    "precision": str,
    "rounds": int,
    "forwards_seconds": float,
    "inference_peak_bytes": int,
    "weight_bytes": int,
    "steps": list,
}
STEP = {
    "method": str,
    "probing": str,
    "step_over_forwards": dict,
    "step_seconds": float,
    "noise_seconds": float,
    "arithmetic_seconds": float,
    "overhead_seconds": float,
    "peak_bytes": int,
    "peak_over_inference": float,
    "forward_passes": int,
    "flops_over_forward": float,
    "reduced_bytes": int,
}


def kinds(record: dict[str, Any]) -> dict[str, type]:
    return {key: type(value) for key, value in record.items()}


def test_command(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench(f"--json={tmp_path / 'bench.json'}", "--precision=32-true,bf16-true")
    content = json.loads((tmp_path / "bench.json").read_text())
    assert kinds(content) == SETTING
    assert content["model"] == "model"
    assert content["parameters"] == 170_944
    assert str(MODEL.parent) not in json.dumps(content)
    assert [measurement["precision"] for measurement in content["measurements"]] == ["32-true", "bf16-true"]
    for measurement, width in zip(content["measurements"], (4, 2), strict=True):
        assert kinds(measurement) == MEASUREMENT
        assert measurement["rounds"] >= 3
        # A Llama's buffers are few: the frequencies of its rotations.
        assert 0 <= measurement["weight_bytes"] - width * 170_944 < 1_000
        assert measurement["inference_peak_bytes"] > measurement["weight_bytes"]
        rows = [(step["method"], step["probing"]) for step in measurement["steps"]]
        assert rows == [("mezo", "streamed"), ("curvzo", "streamed"), ("four-pass", "in_place")]
        for step in measurement["steps"]:
            assert kinds(step) == STEP
            ratio = step["step_over_forwards"]
            assert 0.0 < ratio["least"] <= ratio["median"] <= ratio["most"]
            assert step["noise_seconds"] > 0.0
            assert step["arithmetic_seconds"] > 0.0
            parts = [step[f"{part}_seconds"] for part in ("noise", "arithmetic", "overhead")]
            assert measurement["forwards_seconds"] + sum(parts) == pytest.approx(step["step_seconds"])
            assert step["peak_over_inference"] == step["peak_bytes"] / measurement["inference_peak_bytes"] > 1.0
            assert step["forward_passes"] == step["flops_over_forward"] == 2
            assert step["reduced_bytes"] == 8  # two losses, float32
    printed = capsys.readouterr().out
    for word in ("mezo", "curvzo", "four-pass", "32-true", "bf16-true", "170,944"):
        assert word in printed


def test_each_probing(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    bench(
        "--methods=mezo,perexample",
        "--precision=32-true",
        "--probing=joint,in_place",
        "--perturbation=gaussian",
        f"--json={path}",
    )
    (measurement,) = json.loads(path.read_text())["measurements"]
    rows = [(step["method"], step["probing"], step["forward_passes"]) for step in measurement["steps"]]
    assert rows == [
        ("mezo", "joint", 2),
        ("mezo", "in_place", 2),
        ("perexample", "per_example", 2),
        ("four-pass", "in_place", 2),
    ]
    # Two losses of each example, its id, and the inputs of each matrix that its directions are made of.
    mixtures = measurement["steps"][2]["reduced_bytes"] - 2 * (4 + 4 + 8)
    assert mixtures > 0
    assert mixtures % (2 * 4) == 0


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--methods=mezo,adam", "methods: 'adam' is none of agzo, bszo"),
        ("--precision=64-true", "precision: '64-true' is none of 32-true, bf16-true"),
        ("--probing=", "probing: '' is none of streamed, joint, in_place"),
        ("--tokens=1000", "tokens: the model has positions for 128 tokens, not for 1000"),
        ("--json=nowhere/bench.json", "json: there is no folder for the file nowhere/bench.json"),
        ("--batch=0", "batch: Not of type PositiveInt"),
        ("--seconds=soon", "seconds: Not of type NonNegativeFloat"),
        ("--device=tpu", "device: Expected a typing.Literal['auto', 'cpu', 'cuda']"),
        ("--perturbation=cauchy", "perturbation: Expected a typing.Literal"),
        ("--rounds=3", "unrecognized arguments: --rounds=3"),
        ("--model.name_or_path=./nowhere", "model.name_or_path: there is no folder ./nowhere"),
    ],
)
def test_bad_options_end_in_one_sentence(
    bench: Bench, capsys: pytest.CaptureFixture[str], option: str, sentence: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        bench(option)
    said = capsys.readouterr().err.splitlines()[-1] if isinstance(stopped.value.code, int) else stopped.value.code
    assert stopped.value.code not in (0, None)
    assert said.startswith(f"zolit: error: {sentence}")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_a_missing_cuda_device_is_refused(bench: Bench) -> None:
    with pytest.raises(SystemExit, match="zolit: error: device: there is no CUDA device here"):
        bench("--device=cuda")
