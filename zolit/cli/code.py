"""``--code FILE.py``: imports files with a user's own classes before the parser resolves class paths.

Only the command line accepts ``--code``, so that a configuration file never runs code by itself.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from zolit.errors import Stopped, UserError, require

OPTION = "--code"


HELP = (
    "a Python file with your own classes, such as a method; class paths name them by the file's name, as in --code "
    "my_method.py --model.optimizer my_method.MyMethod. The option may be repeated."
)


def split_code(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separates the files of ``--code`` from the other arguments.

    Args:
        args: The command line, which stays unchanged.

    Returns:
        The files, and the other arguments.

    Raises:
        UserError: If no file follows the last ``--code``.
    """
    files, others = [], []
    remaining = iter(args)
    for arg in remaining:
        if arg == OPTION:
            file = next(remaining, None)
            if file is None:
                raise UserError("code: name a Python file after --code")
            files.append(file)
        elif arg.startswith(f"{OPTION}="):
            files.append(arg.removeprefix(f"{OPTION}="))
        else:
            others.append(arg)
    return files, others


OWN_MODULES: set[str] = set()
"""Names of the modules that ``--code`` imported in this process."""


def import_code(files: Sequence[str]) -> None:
    """Imports each file as a module of the file's name. A file that is imported already stays as it is.

    Raises:
        UserError: If a file does not exist, is no .py file, has the name of another module, or raises an exception.
    """
    for file in files:
        _import_file(file)
        OWN_MODULES.add(Path(file).stem)


def _import_file(file: str) -> None:
    path = Path(file).expanduser().resolve()
    require(path.is_file(), f"code: there is no file {file}")
    require(path.suffix == ".py", f"code: {file} is not a Python file; its name must end in .py")
    name = path.stem
    require(name.isidentifier(), f"code: {name!r} is not a valid module name; rename {file} to letters, digits and _")
    loaded = sys.modules.get(name)
    if loaded is not None and _is_same_file(getattr(loaded, "__file__", None), path):
        return
    found = None if loaded is not None else importlib.util.find_spec(name)
    clash = loaded is not None or (found is not None and not _is_same_file(found.origin, path))
    require(not clash, f"code: the name of {file} is that of the Python module {name!r}; rename the file")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # class paths, checkpoints and other processes find the classes by this name
    try:
        spec.loader.exec_module(module)
    except Stopped:
        del sys.modules[name]
        raise
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        reason = " ".join(str(error).split())
        raise UserError(f"code: importing {file} raised {type(error).__name__}: {reason}") from error


def _is_same_file(origin: str | None, path: Path) -> bool:
    return origin is not None and Path(origin).resolve() == path
