"""One run of a table: trains if the row is trained, tests, and writes the result."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, cast

from torch import Tensor
from zolit_callbacks import StepCheckpoint

from zolit.cli.lightning_cli import run as run_command
from zolit.cli.table.spec import Run, Table, arguments
from zolit.files import write_json
from zolit.training.checkpoint_io import newest_whole

RESULT = "result.json"
COPIED = (
    "metric",
    "steps",
    "forward_passes",
    "backward_passes",
    "step_flops_over_forward",
    "peak_memory_bytes",
    "step_memory_over_inference",
)


def run_cell(table: Table, run: Run, output: Path, scale: str | None, files: str | None) -> dict[str, Any]:
    """Runs one cell with one seed, and writes its result. Continues from the last checkpoint if there is one.

    The test uses the checkpoint with the best validation score. Without test data, the validation score is the result.

    Args:
        table: The table.
        run: The run.
        output: The folder of the table's runs.
        scale: A configuration that is applied last, or None.
        files: A folder of local data, or None.

    Returns:
        ``score`` and ``validation``, between 0 and 1 unless ``lower_is_better``, and the costs of the run.
    """
    folder = output / run.folder
    folders = [f"--trainer.logger.init_args.save_dir={folder}", f"--trainer.default_root_dir={folder}"]
    options = [*arguments(table, run, scale, files), *folders]
    start = time.perf_counter()
    result: dict[str, Any] = {"row": run.row, "task": run.task, "seed": run.seed, "point": dict(run.point)}
    if table.rows[run.row].trained:
        save = newest_whole([folder])
        fitted = run_command(["fit", *options, *([f"--ckpt_path={save}"] if save else [])])
        checkpoint = cast("StepCheckpoint", fitted.trainer.checkpoint_callback)
        summary = json.loads(Path(str(fitted.trainer.log_dir), "summary.json").read_text(encoding="utf-8"))
        result |= {name: summary[name] for name in COPIED}
        result["validation"] = float(cast("Tensor", checkpoint.best_model_score))
        chosen = [f"--ckpt_path={checkpoint.best_model_path}"]
        task, has_test = fitted.datamodule.task, fitted.datamodule.has("test")
    else:
        chosen, has_test = [], True
    if has_test:
        tested = run_command(["test", *options, *chosen])
        task = tested.datamodule.task
        metric = task.metrics[0]
        result |= {"metric": metric, "score": float(tested.trainer.callback_metrics[f"test/{metric}"])}
    else:
        result["score"] = result["validation"]
    result["lower_is_better"] = task.lower_is_better
    result["seconds"] = time.perf_counter() - start
    write_json(folder / RESULT, result)
    return result
