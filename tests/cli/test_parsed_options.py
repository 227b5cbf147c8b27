"""A method that is named without options has its own defaults, and no other method's."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import zolit as package
from tests.conftest import Fit
from tests.helpers import options
from zolit.cli.lightning_cli import ZolitCLI
from zolit.methods import __all__ as names

PLAIN = ("--model.name_or_path=zolit/quickstart/model", "--trainer.max_steps=1")


@pytest.fixture
def parse_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("instantiate_classes", "after_instantiate_classes"):
        monkeypatch.setattr(ZolitCLI, name, lambda self: None)
    monkeypatch.setattr(ZolitCLI, "_run_subcommand", lambda self, subcommand: None)


def defaults(name: str) -> dict[str, object]:
    return options.defaults(getattr(package, name))


def parsed(zolit: Fit, *arguments: str, config: str) -> dict[str, object]:
    given = zolit("fit", *PLAIN, *arguments, config=config).config.fit.model.optimizer
    return dict(given.init_args)


@pytest.mark.usefixtures("parse_alone")
@pytest.mark.parametrize("name", names)
def test_a_yaml_that_names_a_method_alone(zolit: Fit, tmp_path: Path, name: str) -> None:
    (tmp_path / "bare.yaml").write_text(f"model:\n  optimizer:\n    class_path: zolit.{name}\n")
    assert parsed(zolit, config=str(tmp_path / "bare.yaml")) == {**defaults(name), "seed": 0}


@pytest.mark.usefixtures("parse_alone")
@pytest.mark.parametrize("before", ["configs/task/sst2.yaml", "configs/quickstart.yaml", "configs/method/curvzo.yaml"])
@pytest.mark.parametrize("name", names)
def test_the_command_line_names_another_method(zolit: Fit, before: str, name: str) -> None:
    """Options that the YAML sets may be kept. All other options have the defaults of the new method."""
    given = yaml.safe_load(Path(before).read_text()).get("model", {}).get("optimizer", {}).get("init_args", {})
    found = parsed(zolit, f"--model.optimizer=zolit.{name}", config=before)
    kept = {option: value for option, value in given.items() if option in found}
    assert {**found, **kept} == {**defaults(name), "seed": 0, **kept}


def test_without_a_method_it_is_mezo(zolit: Fit, tmp_path: Path) -> None:
    """It has MeZO's own defaults and the run's seed, and the run's configuration says so."""
    short = ("--data.train_file=zolit/quickstart/reviews.train.jsonl", "--seed_everything=5")
    cli = zolit("fit", *PLAIN, *short, "--trainer.log_every_n_steps=1", config="configs/model/opt-125m.yaml")
    assert type(cli.model.zo).__name__ == "MeZO"
    assert cli.model.zo.seed == 5
    (saved,) = tmp_path.rglob("config.yaml")
    written = yaml.safe_load(saved.read_text())["model"]["optimizer"]
    assert written["class_path"] == "zolit.MeZO"
    assert written["init_args"].keys() == defaults("MeZO").keys()


@pytest.mark.usefixtures("parse_alone")
def test_a_seed_of_0_is_a_seed(zolit: Fit) -> None:
    """``seed_everything`` sets the seeds that have no value, also in a method of the user."""
    given = ("--seed_everything=5", "--data.seed=0", "--model.optimizer=MeZO")
    config = zolit("fit", *PLAIN, *given, config="configs/model/opt-125m.yaml").config.fit
    assert (config.data.seed, config.model.optimizer.init_args.seed) == (0, 5)
    config = zolit("fit", *PLAIN, *given, "--model.optimizer.seed=0", config="configs/model/opt-125m.yaml").config.fit
    assert config.model.optimizer.init_args.seed == 0
