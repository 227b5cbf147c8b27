"""The files and the commands of docs/extending.md work."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, Fit

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```(?:python|yaml)\n# (my_\w+\.(?:py|yaml))\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = [
    command.replace("\\\n", " ").split()
    for command in re.findall(r"^\$ zolit fit ((?:.*\\\n)*.*)$", PAGE, re.MULTILINE)
]
SHORT = ("--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.log_every_n_steps=1")


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Path]:
    """Writes the page's files; forgets their modules after the test."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    yield tmp_path
    for name in FILES:
        sys.modules.pop(Path(name).stem, None)


def test_the_page_has_files_and_commands() -> None:
    assert set(FILES) == {"my_method.py", "my_run.yaml", "my_selection.py", "my_law.py", "my_script.py"}
    assert len(COMMANDS) == 5


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands_run(zolit: Fit, files: Path, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    options = [str(files / option) if option in FILES else option for option in command]
    if "--model.optimizer.help" in options:
        with pytest.raises(SystemExit):
            zolit("fit", *options)
        shown = capsys.readouterr().out
        assert "--model.optimizer.directions" in shown
        assert "q, the number of directions" in shown
        assert "--model.optimizer.momentum" in shown
        return
    zo = zolit("fit", *options, *SHORT).model.zo
    parts = {type(part).__module__ for part in (zo, zo.selection, zo.perturbation)}
    (code,) = [option for option in command if option.endswith(".py")]
    assert Path(code).stem in parts
    assert zo.last_step is not None
    assert not zo.last_step.skipped


def test_the_script_runs(files: Path) -> None:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "callbacks")])
    script = [sys.executable, str(files / "my_script.py")]
    subprocess.run(script, check=True, env={**os.environ, "PYTHONPATH": paths}, timeout=120)
