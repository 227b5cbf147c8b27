"""``zolit methods`` and docs/methods/index.md show the same table."""

from __future__ import annotations

import sys

import pytest

import zolit.cli
from tests.helpers.renew import INDEX, index
from zolit.cli.methods import markdown
from zolit.methods import __all__ as names
from zolit.methods import abouts


def test_page_holds_the_table() -> None:
    assert index() == INDEX.read_text(encoding="utf-8"), "`python -m tests.helpers.renew` writes the table"
    assert markdown(abouts()) in index()


def test_command_prints_every_method(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["zolit", "methods"])
    zolit.cli.main()
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)
    assert printed.count("arXiv") >= len(names)
