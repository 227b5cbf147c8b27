"""The links of the docs point to existing files, and their commands are valid."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.conftest import ROOT, Fit, summary
from zolit.cli.export import run
from zolit.cli.lightning_cli import ZolitCLI

PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("zolit/**/*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_named_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "@@" not in text
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (page.parent / target).exists(), target
    for named in re.findall(r"(?:configs|zolit|tests|callbacks)/[\w./-]+\.(?:yaml|py)", text):
        assert (ROOT / named).exists(), named


def test_commands_parse(zolit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parses every `zolit fit` of the pages, and stops before it would run."""
    monkeypatch.setattr(ZolitCLI, "instantiate_classes", lambda self: None)
    monkeypatch.setattr(ZolitCLI, "after_instantiate_classes", lambda self: None)
    monkeypatch.setattr(ZolitCLI, "_run_subcommand", lambda self, subcommand: None)
    commands = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        commands += re.findall(r"^\$ zolit fit (.*)$", text, re.MULTILINE)
    tried = 0
    for command in commands:
        options = command.split("#")[0].split()
        if "..." in options or any(option.endswith(".help") for option in options) or "--ckpt_path" in options:
            continue
        if "--code" in options:  # test_extending.py runs these
            continue
        zolit("fit", *options)
        tried += 1
    assert tried >= 4


def test_a_checkpoint_becomes_a_hugging_face_folder(zolit: Fit, tmp_path: Path) -> None:
    """The command of getting-started."""
    page = (ROOT / "docs" / "getting-started.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^\$ zolit export (.*)$", page, re.MULTILINE)
    cli = zolit("fit", "--trainer.max_steps=2")
    places = {"runs/version_0/checkpoints/best.ckpt": summary(tmp_path)["checkpoint"], "tuned": str(tmp_path / "tuned")}
    run([places.get(option, option) for option in command.split()])
    tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")
    assert cli.model.model is not None
    for name, weight in cli.model.model.state_dict().items():
        assert torch.equal(tuned.state_dict()[name], weight), name
