"""Runs the command line on bad input, in this process, and checks the form of its answer."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.conftest import QUIET, ROOT
from zolit.cli.lightning_cli import ZolitCLI
from zolit.cli.main import main

FIT = {"fit": ZolitCLI.subcommands()["fit"]}


def refusal(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], folder: Path, *options: str) -> str:
    """Returns the only sentence of a refused ``zolit fit`` of the quickstart, short enough to be read.

    The text that Python and the libraries below it write is checked too.
    """
    monkeypatch.chdir(ROOT)
    runs = f"--trainer.logger.init_args.save_dir={folder / 'runs'}"
    command = ["zolit", "fit", "--config=configs/quickstart.yaml", *QUIET, runs, "--trainer.max_steps=1", *options]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(ZolitCLI, "subcommands", staticmethod(lambda: FIT))  # the other parsers take half of the time
    capfd.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code not in (0, None)
    said = capfd.readouterr().err + (stopped.value.code if isinstance(stopped.value.code, str) else "")
    assert "Traceback" not in said
    assert "weights_only" not in said
    assert "Loading weights" not in said
    (sentence,) = [line for line in said.splitlines() if line.startswith("zolit: error: ")]
    assert said.rstrip().endswith(sentence)
    assert len(sentence) < 900
    return sentence.removeprefix("zolit: error: ")


def jsonl(path: Path, records: list[object]) -> Path:
    """Writes records as jsonl."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path
