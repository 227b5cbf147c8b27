"""The parser: one-sentence errors, and the default method."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from jsonargparse import ArgumentParser, Namespace, dict_to_namespace
from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import override

import zolit.methods
from zolit.cli.library_errors import explained
from zolit.cli.moved_names import find_moved, moved_sentence
from zolit.methods import MeZO
from zolit.optim.optimizer import ZerothOrder

_IMPORT_FAILURE = re.compile(
    r"Problem with given class_path '([^']+)': (No module named '[^']+'|module '[^']+' has no attribute '[^']+')"
)
_LONGEST = 400  # characters of a message


class ZolitParser(LightningArgumentParser):
    """Prints an error of the options as one sentence, without the usage of all options.

    Attributes:
        command_line: The arguments of the current command, in which errors look up configuration files.
    """

    command_line: ClassVar[Sequence[str]] = ()

    @override
    def add_class_arguments(self, theclass: type, nested_key: str | None = None, **kwargs: Any) -> list[str]:
        """Leaves the model out of a method's help; jsonargparse does so itself only for a type without None."""
        if nested_key == "model":
            kwargs["skip"] = {*(kwargs.get("skip") or ()), "optimizer.init_args.model"}
        added: list[str] = super().add_class_arguments(theclass, nested_key, **kwargs)
        return added

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints an error as one sentence, and ends the program with exit status 2."""
        sys.stderr.write(f"zolit: error: {explain(message, self.command_line)}\n")
        sys.exit(2)


class CommandParser(ArgumentParser):
    """Parses the options of a command other than those of training, and prints an error as one sentence."""

    @override
    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parses the options. What jsonargparse raises for them becomes one sentence."""
        with explained("command line"):
            return super().parse_args(*args, **kwargs)

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints an error as one sentence, and ends the program with exit status 2."""
        self.exit(2, f"zolit: error: {_shortened(message)}; `{self.prog} --help` lists the options\n")


def explain(message: str, args: Sequence[str] = ()) -> str:
    """Turns jsonargparse's message about an invalid option into one sentence that says what to do.

    Args:
        message: The message, of many lines if the option's type has several alternatives.
        args: The command line, which names the configuration files.
    """
    text = " ".join(message.split())
    key = named[1] if (named := re.match(r'Parser key "([^"]+)":', text)) else ""
    if moved := find_moved(text):
        return moved_sentence(*moved, _file_with(moved[0], args))
    if sentence := _about_import(text):
        return f"{key or 'configuration'}: {sentence}"
    if refused := re.search(r"Option '([^']+)' is not accepted.*class_path='[^']*?([^.']+)'", text):
        return f"{key}: {refused[2]} has no option {refused[1]!r}; `zolit fit --{key}.help {refused[2]}` lists them"
    if key == "model.optimizer" and (path := re.search(r"Expected a path but (\S+) either", text)):
        return (
            f"{key}: there is no method {path[1]!r}; known methods are {', '.join(zolit.methods.__all__)}, and --code"
            " FILE.py adds your own"
        )
    if key and (value := re.search(r"Given value: (.*)$", text)):
        wanted = re.search(r"Subtypes: (\[.*?\]) Errors", text)
        kinds = re.findall(r"<class '([^']+)'>|Literal\[(.*?)\]", wanted[1]) if wanted else []
        types = " or ".join(kind or choices for kind, choices in kinds) or "of another type"
        return f"{key}: {value[1]!r} is not valid, it must be {types}"
    return f"{_shortened(text)}; `zolit fit --help` and `zolit fit --model.optimizer.help CurvZO` list the options"


def _shortened(message: str) -> str:
    text = re.sub(r'^Parser key "([^"]+)":', r"\1:", " ".join(message.split()))
    text = re.sub(r"(could match(?: \S+){5}) .*", r"\1 and others", text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def _about_import(text: str) -> str | None:
    """Returns a sentence about a class path that cannot be imported; None if the message is about something else."""
    if denied := re.search(r"Importing '([^']+)' is not allowed", text):
        return (
            f"{denied[1]} is not a class of zolit, Lightning or torch, which are all that a configuration can name; "
            "--code FILE.py adds your own"
        )
    if problem := _IMPORT_FAILURE.search(text):
        return f"there is no class {problem[1]} ({problem[2]}); --code FILE.py adds your own classes"
    return None


def _file_with(class_path: str, args: Sequence[str]) -> str:
    """Returns the name of the configuration file that contains a class path, or a description of its place."""
    names = [value.removeprefix("--config=").removeprefix("-c=") for value in args]
    for name in names:
        file = Path(name)
        is_config = file.suffix in (".yaml", ".yml", ".json") and file.is_file()
        if is_config and class_path in file.read_text(encoding="utf-8", errors="replace"):
            return name
    return "the command line" if any(class_path in arg for arg in args) else "the configuration"


def with_default_method(given: Namespace | None) -> Namespace:
    """Returns the optimizer's configuration; MeZO if no method is named.

    The parser itself has no default method, because it would pass the default's options on to the method that is named.

    Args:
        given: The parsed configuration; None if there is none. If only options were given, without a method,
            jsonargparse names ``ZerothOrder``.
    """
    options = {} if given is None else dict(given.init_args)
    stages = ("selection", "perturbation", "prober", "estimator", "update")
    has_stage = given is not None and any(given.init_args.get(stage) is not None for stage in stages)
    if given is not None and (has_stage or given.class_path.rpartition(".")[2] != ZerothOrder.__name__):
        return given
    parser = ArgumentParser()
    parser.add_class_arguments(MeZO, skip={"model"})
    defaults = parser.get_defaults()
    defaults.update(dict_to_namespace({option: value for option, value in options.items() if option in defaults}))
    mezo: Namespace = dict_to_namespace({"class_path": "zolit.MeZO", "init_args": defaults})
    return mezo
