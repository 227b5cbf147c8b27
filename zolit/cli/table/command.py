"""``zolit table``: runs the missing cells of a table, and prints the table beside the published scores."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import rich.table
from rich.console import Console

from zolit.cli.code import HELP, OPTION, import_code, split_code
from zolit.cli.parser import CommandParser
from zolit.cli.table.cell import RESULT, run_cell
from zolit.cli.table.spec import Run, Table, read_table, runs
from zolit.errors import Stopped, UserError, require
from zolit.files import write_text
from zolit.training.safe_points import STOPS

Results = dict[Run, dict[str, Any]]


def table(
    file: str,
    output: str | None = None,
    only: list[str] | None = None,
    scale: str | None = None,
    files: str | None = None,
    list_runs: bool = False,
    index: int | None = None,
    code: Sequence[str] = (),
) -> None:
    """Runs the cells of a table, each in its own process, and prints the table.

    Finished runs are skipped, and an interrupted run continues from its last checkpoint. So the same command may be
    repeated.

    Args:
        file: The table, such as configs/paper/curvzo_table1.yaml.
        output: Folder of the runs; null is runs/table/ and the names of the table and of the scale.
        only: Names of rows and tasks to run; all others are left out.
        scale: A configuration that is applied last, for example a smaller model and fewer steps.
        files: A folder of local data: FOLDER/sst2/train.jsonl, validation.jsonl and test.jsonl, and so on.
        list_runs: List the runs with their indices, and run nothing.
        index: Index of the only run to make, from 0, such as $SLURM_ARRAY_TASK_ID.
        code: Python files with the user's classes, for the processes of the runs.

    Raises:
        UserError: If the table is invalid, or the index is out of range.
    """
    spec = read_table(file)
    every = runs(spec)
    chosen = _chosen(spec, every, only or [])
    stem = Path(file).stem + (f"-{Path(scale).stem}" if scale else "")
    folder = Path(output) if output else Path("runs", "table", stem)
    console = Console(width=None if sys.stdout.isatty() else 160)
    if list_runs:
        for number, run in enumerate(every):
            if run in chosen:
                console.print(f"{number:4} {'done' if (folder / run.folder / RESULT).is_file() else '    '} {run.name}")
        return
    if index is not None:
        require(0 <= index < len(every), f"index: there are runs 0 to {len(every) - 1}, not {index}")
        if not (folder / every[index].folder / RESULT).is_file():
            run_cell(spec, every[index], folder, scale, files)
        return
    failed = []
    for run in chosen:
        if (folder / run.folder / RESULT).is_file():
            continue
        console.print(f"[bold]{run.name}")
        given = {"output": folder, "scale": scale, "files": files}
        options = [f"--{name}={value}" for name, value in given.items() if value]
        options += [f"{OPTION}={name}" for name in code]
        command = [sys.executable, "-m", "zolit", "table", file, f"--index={every.index(run)}", *options]
        status = subprocess.run(command, check=False).returncode
        for signum in STOPS:
            if status in (-signum, 128 + signum):
                raise Stopped(signum)
        if status:
            failed.append(run)
    results = {run: _read(path) for run in every if (path := folder / run.folder / RESULT).is_file()}
    title = spec.title + (f"; REDUCED by {scale}" if scale else "")
    shown = _cell_texts(spec, results)
    console.print(_rich_table(title, spec, shown))
    write_text(folder / "table.md", _markdown(title, spec, shown))
    console.print(f"the same in Markdown: {folder / 'table.md'}")
    others = f" and {len(failed) - 3} others" if len(failed) > 3 else ""
    require(not failed, f"table: these runs failed: {'; '.join(run.name for run in failed[:3])}{others}")


def _read(path: Path) -> dict[str, Any]:
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); delete it, and the run is made again") from None
    return result


def _chosen(spec: Table, every: list[Run], only: list[str]) -> list[Run]:
    """Returns the runs that ``only`` selects; all of them if it is empty."""
    unknown = [name for name in only if name not in spec.rows and name not in spec.tasks]
    require(
        not unknown,
        f"only: {', '.join(unknown)} is no row or task; rows are {', '.join(spec.rows)}, tasks {', '.join(spec.tasks)}",
    )
    rows = [name for name in only if name in spec.rows] or list(spec.rows)
    tasks = [name for name in only if name in spec.tasks] or list(spec.tasks)
    return [run for run in every if run.row in rows and run.task in tasks]


def _cell_texts(spec: Table, results: Results) -> dict[tuple[str, str], str]:
    """Returns the text of each cell: the mean score over seeds, at the best grid point, and the published score."""
    cells = {}
    for row, details in spec.rows.items():
        for task in spec.tasks:
            scores = []
            for seed in spec.seeds:
                own = [result for run, result in results.items() if (run.row, run.task, run.seed) == (row, task, seed)]
                if own:
                    scores.append(_best_score(own))
            spread = f" ± {stdev(scores):.1f}" if len(scores) > 1 else ""
            seeds = f" ({len(scores)} of {len(spec.seeds)} seeds)" if 0 < len(scores) < len(spec.seeds) else ""
            measured = f"{mean(scores):.1f}{spread}{seeds}" if scores else "–"
            published = details.published.get(task)
            cells[row, task] = f"{measured} / {'–' if published is None else published}"
    return cells


def _best_score(results: Sequence[dict[str, Any]]) -> float:
    """Returns the score of the run that validated best; in percent if the score is a share."""
    if results[0].get("lower_is_better"):
        return float(min(results, key=lambda result: result.get("validation", 0.0))["score"])
    return 100 * float(max(results, key=lambda result: result.get("validation", 0.0))["score"])


def _rich_table(title: str, spec: Table, cells: dict[tuple[str, str], str]) -> rich.table.Table:
    """Returns the table for the terminal."""
    drawn = rich.table.Table("measured / published", *spec.tasks, title=f"{title} ({len(spec.seeds)} seeds)")
    for row in spec.rows:
        drawn.add_row(row, *(cells[row, task] for task in spec.tasks))
    return drawn


def _markdown(title: str, spec: Table, cells: dict[tuple[str, str], str]) -> str:
    """Returns the table in Markdown."""
    lines = [["measured / published", *spec.tasks], ["---"] * (1 + len(spec.tasks))]
    lines += [[row, *(cells[row, task] for task in spec.tasks)] for row in spec.rows]
    return f"{title} ({len(spec.seeds)} seeds)\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def run(args: list[str]) -> None:
    """Parses the arguments and runs the table.

    Args:
        args: The arguments after ``zolit table``.
    """
    code, others = split_code(args)
    import_code(code)
    parser = CommandParser(prog="zolit table", description="Reproduces a table of a paper beside the published scores.")
    parser.add_function_arguments(table, as_positional=True, as_group=False, skip={"only", "code"})
    parser.add_argument("--only", nargs="+", help="names of rows and tasks to run; all others are left out")
    parser.add_argument(OPTION, metavar="FILE.py", help=HELP)
    options = parser.parse_args(others).as_dict()
    del options["code"]  # it is separated above, so that it may be repeated
    table(**options, code=code)
