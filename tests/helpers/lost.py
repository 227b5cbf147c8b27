"""Runs ``zolit`` as one process of several, whose heartbeat may wait for a shorter time: a script, not a test.

Environment variables, because the launcher starts the other processes with the same arguments: ``PATIENCE`` in beats,
``START_PATIENCE`` in seconds, and ``FOLDER``, where each process writes its id into ``rank<r>`` at its first training
step. With ``BUSY``, the first process then computes in Python for so many seconds.
"""

import os
import time
from pathlib import Path
from typing import Any

from zolit.cli.main import main
from zolit.training import heartbeat, launcher
from zolit.training.module import ZerothOrderModule


def announce() -> None:
    training_step = ZerothOrderModule.training_step

    def announced_step(self: ZerothOrderModule, batch: Any, batch_idx: int) -> Any:
        own = Path(os.environ["FOLDER"]) / f"rank{self.trainer.global_rank}"
        if not own.exists():
            own.write_text(str(os.getpid()))
            end = time.monotonic() + float(os.environ.get("BUSY", "0")) * (self.trainer.global_rank == 0)
            while time.monotonic() < end:
                pass
        return training_step(self, batch, batch_idx)

    ZerothOrderModule.training_step = announced_step


if __name__ == "__main__":
    heartbeat.PATIENCE = int(os.environ["PATIENCE"])
    launcher.START_PATIENCE = int(os.environ.get("START_PATIENCE", "300"))
    announce()
    main()
