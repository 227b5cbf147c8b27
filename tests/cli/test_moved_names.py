"""Old class paths end in one sentence that says the new one, from the parser and from the export."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import yaml

from tests.conftest import Fit, summary
from zolit.cli.export import export
from zolit.cli.moved_names import MOVED, find_moved
from zolit.errors import UserError

OLD = {
    "zolit.selection.Everything": "zolit.optim.AllBlocks",
    "zolit.selection.sampling.Uniform": "zolit.optim.UniformSampling",
    "zolit.selection.PublishedCurvature": "zolit.optim.PublishedSampling",
    "zolit.perturbation.Gaussian": "zolit.optim.Gaussian",
    "zolit.probing.Individual": "zolit.optim.PerExampleProber",
    "zolit.estimators.SPSA": "zolit.optim.SPSA",
    "zolit.updates.SGD": "zolit.optim.SGD",
    "zolit.optimizer.ZerothOrder": "zolit.optim.ZerothOrder",
    "zolit.tuning.Prefix": "zolit.models.PrefixTuning",
    "zolit.tasks.Writing": "zolit.tasks.Generation",
    "zolit.tasks.PromptedData": "zolit.data.PromptedData",
    "zolit.module.ZerothOrderModule": "zolit.training.ZerothOrderModule",
}


@pytest.mark.parametrize("old", OLD)
def test_old_paths_are_found(old: str) -> None:
    assert find_moved(f"Problem with given class_path '{old}': no such module") == (old, OLD[old])


@pytest.mark.parametrize("path", ["zolit.MeZO", "zolit.tasks.SST2", "zolit.optim.SGD", "zolit.tasks.task.Task", ""])
def test_present_paths_are_not_found(path: str) -> None:
    assert find_moved(path) is None


@pytest.mark.parametrize("new", sorted(set(MOVED.values())))
def test_new_paths_exist(new: str) -> None:
    module, _, name = new.rpartition(".")
    assert hasattr(import_module(module), name)


@pytest.mark.parametrize(
    ("section", "old", "new"),
    [
        (
            {"model": {"tuning": {"class_path": "zolit.tuning.Prefix"}}},
            "zolit.tuning.Prefix",
            "zolit.models.PrefixTuning",
        ),
        ({"data": {"task": {"class_path": "zolit.tasks.Writing"}}}, "zolit.tasks.Writing", "zolit.tasks.Generation"),
        (
            {"model": {"optimizer": {"class_path": "zolit.optimizer.ZerothOrder"}}},
            "zolit.optimizer.ZerothOrder",
            "zolit.optim.ZerothOrder",
        ),
        (
            {
                "model": {
                    "optimizer": {
                        "class_path": "zolit.optim.ZerothOrder",
                        "init_args": {"selection": {"class_path": "zolit.selection.Everything"}},
                    }
                }
            },
            "zolit.selection.Everything",
            "zolit.optim.AllBlocks",
        ),
    ],
)
def test_the_parser_names_the_new_path_and_the_file(
    zolit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str], section: dict[str, object], old: str, new: str
) -> None:
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(section))
    with pytest.raises(SystemExit):
        zolit("fit", f"--config={tmp_path / 'old.yaml'}")
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said == f"zolit: error: class_path {old} is now {new}; change it in {tmp_path / 'old.yaml'}"


def test_the_parser_names_the_command_line(zolit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        zolit("fit", "--model.tuning=zolit.tuning.LoRA")
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said == "zolit: error: class_path zolit.tuning.LoRA is now zolit.models.LoRA; change it in the command line"


def test_the_export_names_the_new_path_and_the_file(zolit: Fit, tmp_path: Path) -> None:
    zolit("fit", "--trainer.max_steps=1", "--model.tuning=zolit.models.LoRA")
    checkpoint = summary(tmp_path)["checkpoint"]
    (config,) = tmp_path.rglob("config.yaml")
    config.write_text(config.read_text().replace("zolit.models.LoRA", "zolit.tuning.LoRA"))
    with pytest.raises(
        UserError, match=r"class_path zolit.tuning.LoRA is now zolit.models.LoRA; change it in .*config"
    ):
        export(checkpoint, str(tmp_path / "tuned"))
