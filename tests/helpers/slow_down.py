"""A callback that makes a run slow, so that a test can kill it."""

import time
from typing import Any

from lightning.pytorch import Callback


class SlowDown(Callback):
    """Sleeps after every step."""

    def on_train_batch_end(self, *args: Any) -> None:
        time.sleep(0.1)
