"""``zolit table``: each shipped table runs; a small one is interrupted, resumed and printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.conftest import QUIET, ROOT, Fit
from tests.helpers.examples import records
from tests.helpers.words import write
from zolit.cli.table import command
from zolit.cli.table.cell import run_cell
from zolit.cli.table.spec import Row, Table, arguments, read_table, runs
from zolit.errors import UserError

PAPER = ROOT / "configs" / "paper"
TABLES = sorted(path.name for path in PAPER.glob("*_*.yaml"))
TASKS = {"SST-2": "configs/task/sst2.yaml", "COPA": "configs/task/copa.yaml", "SQuAD": "configs/task/squad.yaml"}
MEZO = "configs/method/mezo.yaml"


@pytest.fixture
def files(tmp_path: Path) -> str:
    """Returns a folder with local data of three tasks, in the layout of --files."""
    for task in ("sst2", "copa", "squad"):
        (tmp_path / "files" / task).mkdir(parents=True)
        for part, count in (("train", 24), ("validation", 8), ("test", 12)):
            write(tmp_path / "files" / task / f"{part}.jsonl", records(task, count))
    return str(tmp_path / "files")


@pytest.fixture
def scale(tmp_path: Path) -> str:
    small = {
        "model": {"name_or_path": "zolit/quickstart/model"},
        "data": {"train_examples": 24, "validation_examples": 8, "test_examples": 12, "batch_size": 8},
        "trainer": {"max_steps": 4, "val_check_interval": 2, "log_every_n_steps": 1},
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small))
    return str(tmp_path / "small.yaml")


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(ROOT)
    rows = {
        "zero-shot": {"configs": [MEZO], "trained": False},
        "MeZO": {
            "configs": [MEZO],
            "grid": {"model.optimizer.lr": [1e-3, 1e-4]},
            "published": {"SST-2": 92.1, "SQuAD": 79.0},
        },
    }
    quiet = {option.lstrip("-").split("=")[0]: option.split("=")[1] for option in QUIET}
    content = {"title": "A table", "tasks": TASKS, "rows": rows, "options": quiet, "seeds": [0, 1]}
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return str(tmp_path / "table.yaml")


@pytest.mark.parametrize("name", TABLES)
def test_shipped_tables_can_be_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    spec = read_table(str(PAPER / name))
    folders = [run.folder for run in runs(spec)]
    assert len(set(folders)) == len(folders) > 0


@pytest.mark.parametrize("name", TABLES)
def test_a_run_of_each_row_and_each_column_of_shipped_tables(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scale: str
) -> None:
    """Uses the quickstart's model, and local data of every task."""
    monkeypatch.chdir(ROOT)
    spec = read_table(str(PAPER / name))
    every, rows, columns = runs(spec), set(), set()
    for config in spec.tasks.values():
        folder = tmp_path / "files" / Path(config).stem
        folder.mkdir(parents=True)
        for part, count in (("train", 24), ("validation", 8), ("test", 12)):
            write(folder / f"{part}.jsonl", records(folder.name, count))
    spec.options |= {"trainer.enable_progress_bar": False, "trainer.enable_model_summary": False}
    tasks = list(spec.tasks)
    for number, row in enumerate(spec.rows):
        run = next(r for r in every if r.row == row and r.task == tasks[number % len(tasks)])
        result = run_cell(spec, run, tmp_path / "out", scale, str(tmp_path / "files"))
        assert 0 <= result["score"] <= 1
        rows.add(run.row)
        columns.add(run.task)
    assert rows == set(spec.rows)


def test_options_of_a_run(files: str) -> None:
    row = Row(configs=["b.yaml"], options={"model.optimizer.eps": 0.1}, grid={"model.optimizer.lr": [1.0, 2.0]})
    spec = Table("t", {"SST-2": "configs/task/sst2.yaml"}, {"r": row}, ["a.yaml"], {"model.optimizer.eps": 0.2}, [3])
    _, second = runs(spec)
    assert arguments(spec, second, "small.yaml", files) == [
        "--config=a.yaml",
        "--config=b.yaml",
        "--config=configs/task/sst2.yaml",
        "--model.optimizer.eps=0.1",
        "--model.optimizer.lr=2.0",
        "--config=small.yaml",
        *(f"--data.{part}_file={files}/sst2/{part}.jsonl" for part in ("test", "train", "validation")),
        "--seed_everything=3",
    ]
    assert str(second.folder) == "r/SST-2/lr=2.0/seed_3"


def test_an_interrupted_table_continues(
    table: str, scale: str, files: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All runs but the last one are made in this process, as in a job array. The command makes the last one."""
    spec = read_table(table)
    every = runs(spec)
    assert len(every) == 3 * (2 + 2 * 2)
    common = [table, f"--output={tmp_path / 'out'}", f"--scale={scale}", f"--files={files}"]
    wanted = [run for run in every if run.task != "SQuAD" and run.seed == 0]
    for run in wanted[:-1]:
        command.run([*common, f"--index={every.index(run)}"])
    last = wanted[-1]
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("result.json")}
    assert len(done) == len(wanted) - 1
    spec.seeds = [0]
    one_seed = yaml.safe_load(Path(table).read_text()) | {"seeds": [0]}
    Path(table).write_text(yaml.safe_dump(one_seed, sort_keys=False))
    capsys.readouterr()
    command.run([*common, "--only", "MeZO", "zero-shot", "SST-2", "COPA"])
    said = capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in done} == done  # no run was repeated
    result = json.loads((tmp_path / "out" / last.folder / "result.json").read_text())
    assert result["forward_passes"] == 8
    assert result["metric"] == "accuracy"
    assert "REDUCED by" in said
    assert "/ 92.1" in said
    assert "– / 79.0" in said  # SQuAD was not run
    lines = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert lines[2] == "| measured / published | SST-2 | COPA | SQuAD |"
    scores = [json.loads(path.read_text()) for path in (tmp_path / "out" / "MeZO" / "SST-2").rglob("result.json")]
    best = max(scores, key=lambda found: found["validation"])
    assert lines[5].startswith(f"| MeZO | {100 * best['score']:.1f} / 92.1 |")


def test_an_interrupted_run_ends_like_an_uninterrupted_one(
    table: str, scale: str, files: str, tmp_path: Path, zolit: Fit
) -> None:
    spec = read_table(table)
    run = next(run for run in runs(spec) if (run.row, run.task) == ("MeZO", "SST-2"))
    whole = run_cell(spec, run, tmp_path / "whole", scale, files)
    folder = tmp_path / "begun" / run.folder
    places = [f"--trainer.logger.init_args.save_dir={folder}", f"--trainer.default_root_dir={folder}"]
    first, *options = arguments(spec, run, scale, files)
    zolit("fit", *options, *places, "--trainer.max_steps=2", config=first.removeprefix("--config="))
    gone_on = run_cell(spec, run, tmp_path / "begun", scale, files)
    assert (whole["steps"], whole["forward_passes"]) == (4, 8)
    kept = ("steps", "forward_passes", "validation", "score", "metric")
    assert {name: gone_on[name] for name in kept} == {name: whole[name] for name in kept}
    assert sorted(path.name for path in folder.glob("version_*")) == ["version_0", "version_1", "version_2"]


def test_invalid_tables(table: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*no.yaml"):
        read_table(str(tmp_path / "no.yaml"))
    (tmp_path / "bad.yaml").write_text("title: x\nrows: 3\n")
    with pytest.raises(UserError, match=r"bad.yaml is not a valid table"):
        read_table(str(tmp_path / "bad.yaml"))
    with pytest.raises(UserError, match="only: QNLI is no row or task; rows are zero-shot, MeZO, tasks SST-2"):
        command.run([table, "--only", "QNLI"])
    with pytest.raises(UserError, match="index: there are runs 0 to 17, not 18"):
        command.run([table, "--index=18"])
    content = yaml.safe_load(Path(table).read_text())
    for change, said in (
        ({"tasks": {"SST-2": "nowhere.yaml"}}, "names nowhere.yaml, which does not exist"),
        ({"tasks": {"RTE": "configs/task/rte.yaml"}}, "the row 'MeZO' has published scores for unknown tasks"),
    ):
        Path(table).write_text(yaml.safe_dump(content | change, sort_keys=False))
        with pytest.raises(UserError, match=said):
            read_table(table)


def test_a_perplexity_is_better_when_it_is_smaller_and_no_share() -> None:
    rows = {"MeZO": Row(grid={"model.optimizer.lr": [1e-3, 1e-4, 1e-5]}, published={"Text": 17.5})}
    spec = Table("A table", {"Text": "configs/task/text.yaml", "SST-2": "configs/task/sst2.yaml"}, rows)
    text, sst2 = ([run for run in runs(spec) if run.task == task] for task in ("Text", "SST-2"))
    found = zip((30.0, 20.0, 25.0), (31.0, 21.5, 24.0), strict=True)
    results = {
        run: {"validation": validation, "score": score, "lower_is_better": True}
        for run, (validation, score) in zip(text, found, strict=True)
    }
    results |= {run: {"validation": 0.5, "score": 0.25} for run in sst2}
    cells = command._cell_texts(spec, results)
    assert cells["MeZO", "Text"] == "21.5 / 17.5"
    assert cells["MeZO", "SST-2"] == "25.0 / –"


def test_a_cell_of_texts_says_that_lower_is_better(table: str, scale: str, files: str, tmp_path: Path) -> None:
    (tmp_path / "files" / "text").mkdir()
    for part in ("train", "validation", "test"):
        write(tmp_path / "files" / "text" / f"{part}.jsonl", records("text", 24))
    content = yaml.safe_load(Path(table).read_text())
    content |= {"tasks": {"Text": "configs/task/text.yaml"}, "rows": {"MeZO": {"configs": [MEZO]}}, "seeds": [0]}
    Path(table).write_text(yaml.safe_dump(content, sort_keys=False))
    spec = read_table(table)
    result = run_cell(spec, runs(spec)[0], tmp_path / "out", scale, files)
    assert result["metric"] == "perplexity"
    assert result["lower_is_better"]
    assert result["validation"] > 1
