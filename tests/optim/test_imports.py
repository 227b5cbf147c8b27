"""``zolit.optim`` and ``zolit.methods`` need torch, numpy and the standard library alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib

import pytest

from tests.conftest import ROOT

NEEDED = {"torch", "numpy"}

REFUSAL = """
import importlib.metadata
import sys

REFUSED = set({distributions})
packages = importlib.metadata.packages_distributions()
names = {{name for name, owners in packages.items() if REFUSED.intersection(owner.lower() for owner in owners)}}
assert names >= {{"transformers", "lightning", "peft", "datasets"}}, names


class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in names:
            raise ImportError(f"{{name}} is refused")
        return None


if {refused}:
    sys.meta_path.insert(0, Refuse())
"""

STEP = """
import torch

import zolit.optim
import zolit.methods
from zolit import MeZO

model = torch.nn.Linear(3, 1)
before = model.weight.detach().clone()
optimizer = MeZO(model, lr=1e-2)
optimizer.step(lambda: model(torch.ones(4, 3)).square().mean(1))
assert not torch.equal(model.weight, before)
assert not optimizer.last_step.skipped
"""


def refused_distributions() -> list[str]:
    """Returns the names of the project's dependencies except torch and numpy."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    names = {re.split(r"[\[<>=!~ ;]", requirement)[0].lower() for requirement in project["dependencies"]}
    assert names >= NEEDED
    return sorted(names - NEEDED)


def run(script: str, refused: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs a script in a process where the other dependencies cannot be imported, or can be."""
    refusal = REFUSAL.format(distributions=refused_distributions(), refused=refused)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", refusal + script]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)


def test_a_step_runs_where_nothing_but_torch_and_numpy_can_be_imported() -> None:
    finished = run(STEP)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize("package", ["transformers", "lightning", "peft", "datasets"])
def test_the_refusal_works(package: str) -> None:
    assert f"{package} is refused" in run(f"import {package}").stderr


def test_importing_zolit_imports_no_other_dependency() -> None:
    """This also holds if all of them are installed. Their imports take seconds."""
    finished = run("import zolit\nprint(sorted(names.intersection(sys.modules)))", refused=False)
    assert finished.stdout.strip() == "[]", finished.stderr
