"""A callback that gives a test the time to kill a run."""

import time
from typing import Any

from lightning.pytorch import Callback


class SlowDown(Callback):
    """Sleeps after every step."""

    def on_train_batch_end(self, *args: Any) -> None:
        time.sleep(0.1)
