"""What a configuration, a checkpoint or a table may say: files that somebody else made must not run code.

Class paths name existing classes of zolit, Lightning and torch. Everything else that runs code comes in by the command
line alone: ``--code FILE.py`` and ``--model.trust_remote_code true``. ``docs/security.md`` has the whole policy.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # it has no type hints
from jsonargparse import Namespace, set_parsing_settings

from zolit.errors import UserError, require

TRUSTED = ("lightning", "torch", "zolit", "zolit_callbacks")
"""Packages whose classes a class path may name."""

_MOST_ALIASES = 100
_LARGEST_FILE = 1 << 20
_CONFIGURATIONS = {"--config", "-c", "--model", "--data", "--trainer", "--checkpoint"}
"""Options whose value may be the name of a file with options, whatever its suffix."""


def check_files(args: Sequence[str]) -> None:
    """Checks every file with options on the command line; see ``check_file``. Called before each parsing.

    Raises:
        UserError: If a file is not fine, or options would come from standard input.
    """
    for before, arg in zip(["", *args], args, strict=False):
        option, _, value = arg.partition("=")
        file = Path(value or arg)
        names_options = bool({option, before} & _CONFIGURATIONS)
        require(
            not (names_options and str(file) == "-"), f"{arg}: options from standard input are not read; name a file"
        )
        if (names_options or file.suffix in (".yaml", ".yml")) and file.is_file():
            check_file(file)


def check_file(file: Path) -> None:
    """Checks a YAML file. Called before it is read.

    A file of a few lines can stand for millions of values, by aliases of aliases.

    Raises:
        UserError: If the file is larger than 1 MiB, has more than 100 aliases, or is not YAML.
    """
    require(file.stat().st_size <= _LARGEST_FILE, f"{file}: a configuration has at most 1 MiB")
    try:
        aliases = sum(isinstance(event, yaml.AliasEvent) for event in yaml.parse(file.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not a YAML file: {' '.join(str(error).split())}") from None
    require(aliases <= _MOST_ALIASES, f"{file}: a configuration has at most {_MOST_ALIASES} aliases, not {aliases}")


def restrict_imports(own: Collection[str] = ()) -> None:
    """Lets jsonargparse import class paths of trusted packages and of the user's own modules only.

    Called before each parsing.

    Args:
        own: Names of the modules that ``--code`` imported.
    """
    set_parsing_settings(
        import_path_denylist=["*"],
        import_path_allowlist=[*TRUSTED, *own],
        instantiate_subclass_spec_in_any=False,
    )


def check_configuration(config: Namespace, args: Sequence[str], own: Collection[str] = ()) -> None:
    """Checks that a parsed configuration names no function, and allows no code. Called before classes are instantiated.

    Args:
        config: The options of the subcommand.
        args: The command line.
        own: Names of the modules that ``--code`` imported; their functions may be named.

    Raises:
        UserError: If the configuration names a function, allows code, or places a run outside of its folder.
    """
    for key, leaf in _leaves(config, ""):
        value = _resolved(leaf) if key.endswith("class_path") else leaf
        if not (inspect.isroutine(value) or inspect.isclass(value)):
            continue
        option = key.replace(".init_args", "").removesuffix(".class_path")
        module = str(getattr(value, "__module__", None))  # a method of a type that is written in C has none
        if module.partition(".")[0] in own:
            continue
        require(
            inspect.isclass(value) and key.endswith("class_path"),
            f"{option}: {value.__qualname__} is a function, which a configuration cannot name; "
            "put your own function into a file, and add --code FILE.py to the command",
        )
    require(
        not config.model.trust_remote_code or any(arg.startswith("--model.trust_remote_code") for arg in args),
        "model.trust_remote_code: a configuration cannot allow the code of a model; if you trust the model's author, "
        "add --model.trust_remote_code true to the command",
    )
    for key, value in _leaves(config.trainer.logger, "trainer.logger"):
        if key.endswith((".name", ".version")):
            inside = not Path(str(value)).is_absolute() and ".." not in Path(str(value)).parts
            require(inside, f"{key.replace('.init_args', '')}: {value} lies outside of the folder of runs (save_dir)")
    require(
        config.get("weights_only") in (None, True),
        "weights_only: false would let a checkpoint run code; the checkpoints of zolit never need it",
    )


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yields each value of nested options with its dotted key."""
    if isinstance(value, Namespace | Mapping):
        entries = vars(value).items() if isinstance(value, Namespace) else value.items()
        for name, inner in entries:
            clean = str(name).strip("\u200b")
            yield from _leaves(inner, f"{key}.{clean}" if key else clean)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner, key)
    else:
        yield key, value


def _resolved(class_path: str) -> Any:
    """Returns the object that a class path names; jsonargparse has imported its module already."""
    module, _, name = class_path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def require_local(path: str | Path) -> None:
    """Checks that a checkpoint is a file of this machine.

    Raises:
        UserError: If it is an address, whose content torch would run.
    """
    remote = "://" in str(path) or str(path).startswith("registry")
    require(not remote, f"ckpt_path: {path} is not a file; download the checkpoint, and name the file")
