"""One run of a table: trained if there is something to train, tested, and written down."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, cast

from torch import Tensor
from zolit_callbacks import StepCheckpoint

import zolit.cli
from zolit.tables.spec import Run, Table, arguments

RESULT = "result.json"
KEPT = ("metric", "steps", "forward_passes", "backward_passes", "peak_memory_bytes", "step_memory_over_inference")


def perform(table: Table, run: Run, output: Path, scale: str | None, files: str | None) -> dict[str, Any]:
    """Performs a run, going on where it was broken off, and writes its result.

    Tested is the checkpoint that is best by validation; without data to test on, its validation counts.

    Returns:
        ``score`` and ``validation``, between 0 and 1, and what the run cost.
    """
    folder = output / run.folder
    places = [f"--trainer.logger.init_args.save_dir={folder}", f"--trainer.default_root_dir={folder}"]
    options = [*arguments(table, run, scale, files), *places]
    start = time.perf_counter()
    result: dict[str, Any] = {"row": run.row, "task": run.task, "seed": run.seed, "point": dict(run.point)}
    if table.rows[run.row].trained:
        begun = sorted(folder.rglob("last.ckpt"), key=lambda file: file.stat().st_mtime)
        fitted = zolit.cli.run(["fit", *options, *([f"--ckpt_path={begun[-1]}"] if begun else [])])
        checkpoint = cast("StepCheckpoint", fitted.trainer.checkpoint_callback)
        summary = json.loads(Path(str(fitted.trainer.log_dir), "summary.json").read_text(encoding="utf-8"))
        result |= {name: summary[name] for name in KEPT}
        result["validation"] = float(cast("Tensor", checkpoint.best_model_score))
        chosen = [f"--ckpt_path={checkpoint.best_model_path}"]
        has_test = fitted.datamodule.has("test")
    else:
        chosen, has_test = [], True
    if has_test:
        tested = zolit.cli.run(["test", *options, *chosen])
        metric = tested.datamodule.task.metrics[0]
        result |= {"metric": metric, "score": float(tested.trainer.callback_metrics[f"test/{metric}"])}
    else:
        result["score"] = result["validation"]
    result["seconds"] = time.perf_counter() - start
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULT).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result
