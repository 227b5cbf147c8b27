"""``--code FILE.py``: a user's method, selection and law from files outside of the project, and each error."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from tests.conftest import QUIET, ROOT, Fit, summary
from tests.training.test_replicated import fit
from zolit.cli.code import import_code, split_code
from zolit.cli.main import main
from zolit.cli.table import command
from zolit.errors import UserError

METHOD = '''
from torch import nn

from zolit import ZerothOrder
from zolit.optim import SPSA


class MyMethod(ZerothOrder):
    """Two-point steps with a fixed probe radius.

    Args:
        model: The model.
        lr: Learning rate.
        seed: Seed of the directions.
    """

    def __init__(self, model: nn.Module, *, lr: float = 1e-3, seed: int = 0) -> None:
        super().__init__(model, lr=lr, eps=1e-2, seed=seed, estimator=SPSA())
'''
STAGES = '''
import torch

from zolit.optim import BlockSample, Perturbation, Selection


class FirstBlocks(Selection):
    """Chooses the first blocks, in each step.

    Args:
        count: Number of blocks.
    """

    def __init__(self, count: int = 2) -> None:
        self.count = count

    def select(self, step):
        chosen = torch.arange(len(self.blocks)) < self.count
        return BlockSample(self.blocks, chosen, probabilities=chosen.double(), corrections=chosen.double())


class Ones(Perturbation):
    """A law whose directions are all ones times a factor.

    Args:
        factor: The factor.
    """

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

    def draw(self, weight, key, start, stop, dtype=torch.float32):
        return torch.ones(stop - start, device=weight.parameter.device), self.factor
'''
SHORT = ("--trainer.max_steps=2", "--trainer.val_check_interval=2")


@pytest.fixture(autouse=True)
def forget_modules() -> Iterator[None]:
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("my_"):
            del sys.modules[name]


@pytest.fixture
def method(tmp_path: Path) -> str:
    (tmp_path / "my_method.py").write_text(METHOD)
    return str(tmp_path / "my_method.py")


@pytest.fixture
def stages(tmp_path: Path) -> str:
    (tmp_path / "my_stages.py").write_text(STAGES)
    return str(tmp_path / "my_stages.py")


def test_a_method_on_the_command_line(zolit: Fit, method: str, tmp_path: Path) -> None:
    """The method has its own options. The run's config.yaml names the class and not the file."""
    cli = zolit("fit", "--code", method, "--model.optimizer=my_method.MyMethod", "--model.optimizer.lr=2e-3", *SHORT)
    assert (type(cli.model.zo).__module__, type(cli.model.zo).__name__) == ("my_method", "MyMethod")
    assert cli.model.zo.param_groups[0]["lr"] == 2e-3
    (saved,) = tmp_path.rglob("config.yaml")
    config = yaml.safe_load(saved.read_text())
    assert config["model"]["optimizer"]["class_path"] == "my_method.MyMethod"
    assert "code" not in config


def test_a_method_in_a_configuration(zolit: Fit, method: str, tmp_path: Path) -> None:
    """The run's config.yaml repeats the run to the bit, and its checkpoint resumes."""
    optimizer = {"class_path": "my_method.MyMethod", "init_args": {"lr": 1e-3}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"model": {"optimizer": optimizer}}))
    first = zolit("fit", f"--code={method}", f"--config={tmp_path / 'mine.yaml'}", *SHORT)
    figures = summary(tmp_path)
    (saved,) = tmp_path.rglob("config.yaml")
    again = zolit("fit", f"--code={method}", config=str(saved))
    for name, weight in first.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], weight), name
    options = (f"--code={method}", f"--config={tmp_path / 'mine.yaml'}", "--trainer.max_steps=4", *SHORT[1:])
    resumed = zolit("fit", *options, f"--ckpt_path={figures['checkpoint']}")
    assert resumed.model.zo.last_step.total_forward_passes == 8


def test_a_selection_in_init_args(zolit: Fit, stages: str) -> None:
    options = ("--model.optimizer=zolit.optim.ZerothOrder", "--model.optimizer.selection=my_stages.FirstBlocks")
    cli = zolit("fit", f"--code={stages}", *options, "--model.optimizer.selection.count=3", *SHORT)
    assert int(cli.model.zo.last_step.selection.chosen.sum()) == 3


def test_a_law_in_init_args(zolit: Fit, stages: str, tmp_path: Path) -> None:
    law = {"class_path": "my_stages.Ones", "init_args": {"factor": 0.5}}
    optimizer = {"class_path": "zolit.optim.ZerothOrder", "init_args": {"lr": 1e-3, "perturbation": law}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"model": {"optimizer": optimizer}}))
    cli = zolit("fit", f"--code={stages}", f"--config={tmp_path / 'mine.yaml'}", *SHORT)
    assert type(cli.model.zo.perturbation).__name__ == "Ones"
    assert cli.model.zo.perturbation.factor == 0.5


def test_the_command_line_stays_unchanged(method: str, stages: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of a distributed run start with ``sys.argv``, which therefore keeps ``--code``."""
    monkeypatch.chdir(ROOT)
    command_line = ["zolit", "fit", "--code", method, f"--code={stages}", "--config=configs/quickstart.yaml", *QUIET]
    command_line += ["--trainer.fast_dev_run=true", "--model.optimizer=my_method.MyMethod"]
    monkeypatch.setattr(sys, "argv", list(command_line))
    main()
    assert sys.argv == command_line
    assert {"my_method", "my_stages"} <= set(sys.modules)


def test_split_code() -> None:
    args = ["fit", "--code", "a.py", "--config=x.yaml", "--code=b.py", "--codes=1"]
    assert split_code(args) == (["a.py", "b.py"], ["fit", "--config=x.yaml", "--codes=1"])
    with pytest.raises(UserError, match="code: name a Python file after --code"):
        split_code(["fit", "--code"])


def test_a_file_is_imported_once(tmp_path: Path) -> None:
    file = tmp_path / "my_counter.py"
    file.write_text("calls = []\n")
    import_code([str(file)])
    first = sys.modules["my_counter"]
    import_code([str(file), str(file)])
    assert sys.modules["my_counter"] is first


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("my_missing.py", None, "code: there is no file .*my_missing.py"),
        ("my_notes.txt", "", "code: .*my_notes.txt is not a Python file; its name must end in .py"),
        ("my-method.py", "", "code: 'my-method' is not a valid module name; rename .*my-method.py to letters"),
        ("json.py", "", "code: the name of .*json.py is that of the Python module 'json'; rename the file"),
        ("colorsys.py", "", "code: the name of .*colorsys.py is that of the Python module 'colorsys'"),
        ("my_error.py", "1 / 0", "code: importing .*my_error.py raised ZeroDivisionError: division by zero"),
        ("my_syntax.py", "def", "code: importing .*my_syntax.py raised SyntaxError: "),
        ("my_exit.py", "raise SystemExit(3)", "code: importing .*my_exit.py raised SystemExit: 3"),
    ],
)
def test_errors_are_one_sentence(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        import_code([str(tmp_path / name)])
    assert "\n" not in str(caught.value)
    assert getattr(sys.modules.get(Path(name).stem), "__file__", None) != str(tmp_path / name)


def test_two_files_of_one_name(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "my_file.py").write_text("")
    with pytest.raises(UserError, match=r"code: the name of .*b/my_file.py is that of the Python module 'my_file'"):
        import_code([str(tmp_path / "a" / "my_file.py"), str(tmp_path / "b" / "my_file.py")])


def test_only_the_command_line_accepts_code(
    zolit: Fit, method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "code.yaml").write_text(f"code: {method}\n")
    with pytest.raises(SystemExit):
        zolit("fit", f"--config={tmp_path / 'code.yaml'}", *SHORT)
    assert re.search(r"zolit: error: .*code", capsys.readouterr().err)
    assert "my_method" not in sys.modules


def test_help_explains_the_option(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--help"], ["fit", "--help"]):
        monkeypatch.setattr(sys, "argv", ["zolit", *options])
        with pytest.raises(SystemExit):
            main()
        assert "--code FILE.py" in " ".join(capsys.readouterr().out.split())


def test_a_table_imports_the_file(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is imported in this process and in the process of each run."""
    monkeypatch.chdir(ROOT)
    options = {"trainer.enable_progress_bar": False, "trainer.enable_model_summary": False, "trainer.max_steps": 2}
    options |= {"trainer.val_check_interval": 2, "data.validation_examples": 20, "trainer.accelerator": "cpu"}
    row = {"options": {"model.optimizer": "my_method.MyMethod"}}
    tasks = {"reviews": "configs/quickstart.yaml"}
    (tmp_path / "table.yaml").write_text(
        yaml.safe_dump({"title": "t", "tasks": tasks, "rows": {"mine": row}, "options": options})
    )
    command.run([str(tmp_path / "table.yaml"), f"--code={method}", f"--output={tmp_path / 'out'}"])
    assert len(list((tmp_path / "out").rglob("result.json"))) == 1


def test_two_processes_import_the_file(method: str, tmp_path: Path) -> None:
    options = (f"--code={method}", "--model.optimizer=my_method.MyMethod", "--trainer.max_steps=2")
    first, second = fit(tmp_path / "two", 2, 8, *options, "--trainer.val_check_interval=2")
    assert first["losses"] == second["losses"]
