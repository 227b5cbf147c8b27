"""Each method's options are the stored ones, and the help has a text for every option."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
import yaml
from jsonargparse import ArgumentParser
from torch import nn

import zolit
from tests.helpers.options import defaults
from tests.helpers.renew import OPTIONS, listing
from tests.helpers.tiny import layered
from zolit import ZerothOrder, methods
from zolit.methods.base import Method

STORED = json.loads(OPTIONS.read_text(encoding="utf-8"))


class Plain(Method):
    """A method without options."""


SHARED = defaults(Plain).keys() - {"estimator"}
"""The options that every method offers, unless it fixes the stage."""


def test_options_are_the_stored_ones() -> None:
    """Fails if a default has changed or an option is missing. After an intended change, renew the list."""
    assert len(SHARED) == 11
    assert json.loads(listing()) == STORED, (
        f"the options changed; `python -m tests.helpers.renew` writes {OPTIONS.name}"
    )


@pytest.mark.parametrize("name", methods.__all__)
def test_methods_refuse_what_they_fix(name: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--optimizer", type=Callable[[nn.Module], ZerothOrder])
    for stage in ("estimator", "update", "prober", *(SHARED - STORED[name].keys())):
        with pytest.raises(Exception, match=stage):
            parser.parse_args([f"--optimizer=zolit.{name}", f"--optimizer.{stage}=null"])
        if name != "LinearProbe":  # looks at its model first
            with pytest.raises(TypeError, match=stage):
                getattr(zolit, name)(layered(), **{stage: None})


@pytest.mark.parametrize("name", methods.__all__)
def test_help_has_a_text_for_every_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser()
    parser.add_argument("--optimizer", type=Callable[[nn.Module], ZerothOrder])
    with pytest.raises(SystemExit):
        parser.parse_args([f"--optimizer.help=zolit.{name}"])
    entries = [" ".join(entry.split()) for entry in capsys.readouterr().out.split("\n  --optimizer.")[1:]]
    found = [
        re.fullmatch(r"(\w+) (?:\[, ITEM|\S)+ (?P<text>\S.+?) \(type: .+, default: .*\)", entry)
        for entry in entries
        if ".help" not in entry.split()[0]
    ]
    assert all(found), entries
    assert {option[1] for option in found if option} == defaults(getattr(zolit, name)).keys()
    texts = {option["text"] for option in found if option}
    assert len(texts) == len(found)
    assert not [text for text in texts if text[-1] != "."]


@pytest.mark.parametrize("name", methods.__all__)
def test_configurations_name_the_method_and_write_all_its_options(name: str) -> None:
    """The path is that in ``zolit``, also if another path or a short name was given."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--optimizer", type=Callable[[nn.Module], ZerothOrder])
    module = getattr(zolit, name).__module__
    for given in (f"zolit.{name}", f"zolit.methods.{name}", f"{module}.{name}", name):
        parsed = parser.parse_args([f"--optimizer={given}"])
        written = yaml.safe_load(parser.dump(parsed, skip_none=False))["optimizer"]
        assert written["class_path"] == f"zolit.{name}"
        assert written["init_args"].keys() == defaults(getattr(zolit, name)).keys()


def test_methods_have_their_names_in_the_package() -> None:
    """Names are in alphabetical order. A base class is not a method."""
    assert methods.__all__ == sorted(methods.__all__, key=str.casefold)
    assert set(zolit.__all__) >= {*methods.__all__, "ZerothOrder"}
    assert all(getattr(zolit, name).__name__ == name for name in methods.__all__)
    assert not {"Method", "MethodBase"} & set(methods.__all__)
