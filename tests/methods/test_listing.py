"""``zolit methods`` and the page say the same of every method."""

from __future__ import annotations

import sys

import pytest

import zolit.cli
from tests.conftest import ROOT
from zolit.methods import __all__ as names
from zolit.methods import abouts
from zolit.methods.listing import markdown


def test_page_holds_the_table() -> None:
    page = (ROOT / "docs" / "methods" / "index.md").read_text(encoding="utf-8")
    assert markdown(abouts()) in page, "docs/methods/index.md is behind zolit.methods.listing.markdown"


def test_command_prints_every_method(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["zolit", "methods"])
    zolit.cli.main()
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)
    assert printed.count("arXiv") >= len(names)
