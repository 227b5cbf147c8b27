"""The definition of a table: tasks as columns, methods as rows, seeds, and grids of options."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from zolit.cli.trust import check_file
from zolit.errors import UserError, require

_COMMAND_LINE_ALONE = ("ckpt_path", "code", "data.trust_remote_code", "model.trust_remote_code", "weights_only")


@dataclass
class Row:
    """A row: a method with its options.

    Args:
        configs: Configuration files, applied after those of the table.
        options: Options by their dotted names, which override all files.
        grid: Values of options. The combination with the best validation score counts.
        published: Published scores by the names of the tasks, in percent if they are shares.
        trained: Whether the model is trained; else it is tested as it is.
    """

    configs: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, list[Any]] = field(default_factory=dict)
    published: dict[str, float] = field(default_factory=dict)
    trained: bool = True


@dataclass
class Table:
    """A table of a paper.

    Args:
        title: The title, with the source.
        tasks: Configuration file of each task, by its name, in the order of the columns.
        rows: The rows, by their names.
        configs: Configuration files of all cells: the model and its tuning.
        options: Options of all cells, by their dotted names.
        seeds: Seeds of each cell; one run a seed.
    """

    title: str
    tasks: dict[str, str]
    rows: dict[str, Row]
    configs: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0])


@dataclass(frozen=True)
class Run:
    """One run of a table.

    Attributes:
        row: Name of its row.
        task: Name of its column.
        point: Its values of the row's grid, by their dotted names.
        seed: Its seed.
    """

    row: str
    task: str
    point: tuple[tuple[str, Any], ...]
    seed: int

    @property
    def folder(self) -> Path:
        """The run's folder, relative to the table's folder."""
        point = ",".join(f"{name.rpartition('.')[2]}={value}" for name, value in self.point)
        return Path(_plain(self.row), _plain(self.task), _plain(point) or "only", f"seed_{self.seed}")

    @property
    def name(self) -> str:
        """The run's name in messages."""
        point = "".join(f", {name} {value}" for name, value in self.point)
        return f"{self.row}, {self.task}{point}, seed {self.seed}"


def _plain(name: str) -> str:
    """Replaces characters that do not belong in folder names."""
    return re.sub(r"[^\w.=,+-]+", "_", name).lstrip(".") or "_"


def read_table(file: str) -> Table:
    """Reads a table.

    Raises:
        UserError: If the table is invalid, or names a file that does not exist.
    """
    require(Path(file).is_file(), f"table: there is no file {file}")
    check_file(Path(file))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Table, as_group=False)
    try:
        parsed = parser.instantiate_classes(parser.parse_path(file))
    except ArgumentError as error:
        raise UserError(f"{file} is not a valid table: {' '.join(str(error).split())}") from error
    table = Table(**{name: _value(parsed[name]) for name in ("title", "tasks", "rows", "configs", "options", "seeds")})
    for options in (table.options, *(named for row in table.rows.values() for named in (row.options, row.grid))):
        for option in options:
            require(
                option not in _COMMAND_LINE_ALONE,
                f"{file}: a table cannot set {option}; only the command line can",
            )
    needed = [*table.configs, *table.tasks.values(), *(config for row in table.rows.values() for config in row.configs)]
    for config in needed:
        require(
            Path(config).is_file(),
            f"{file} names {config}, which does not exist; run the command in the folder that has configs/",
        )
    for name, row in table.rows.items():
        unknown = set(row.published) - set(table.tasks)
        require(not unknown, f"{file}: the row {name!r} has published scores for unknown tasks: {', '.join(unknown)}")
    return table


def _value(parsed: Any) -> Any:
    return parsed.as_dict() if isinstance(parsed, Namespace) else parsed


def runs(table: Table) -> list[Run]:
    """Returns all runs of a table, in order."""
    return [
        Run(name, task, tuple(zip(row.grid, values, strict=True)), seed)
        for name, row in table.rows.items()
        for task in table.tasks
        for values in product(*row.grid.values())
        for seed in table.seeds
    ]


def arguments(table: Table, run: Run, scale: str | None, files: str | None) -> list[str]:
    """Returns the command-line options of a run.

    Args:
        table: The table.
        run: One of its runs.
        scale: A configuration that is applied last, or None.
        files: A folder with one folder for each task, named like the task's file, with train, validation and
            test.jsonl.
    """
    row = table.rows[run.row]
    configs = [*table.configs, *row.configs, table.tasks[run.task]]
    options: Mapping[str, Any] = {**table.options, **row.options, **dict(run.point)}
    present: Sequence[Path] = sorted(Path(files, Path(table.tasks[run.task]).stem).glob("*.jsonl")) if files else []
    return [
        *(f"--config={config}" for config in configs),
        *(f"--{name}={value}" for name, value in options.items()),
        *([f"--config={scale}"] if scale else []),
        *(f"--data.{file.stem}_file={file}" for file in present),
        f"--seed_everything={run.seed}",
    ]
