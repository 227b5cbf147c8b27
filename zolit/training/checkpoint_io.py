"""Saves checkpoints so that a file under its true name is always whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from typing_extensions import override


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file beside its target, and renames it when it is complete.

    Lightning writes to the folder of temporary files and moves the file from there. On another file system that is a
    copy: a process that is killed during the copy leaves a broken checkpoint, and the one before it is lost. A rename
    within a folder is one operation of the file system. The file goes to the disk without a copy in memory.
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Saves a checkpoint; see ``CheckpointIO.save_checkpoint``. Called by the process of rank 0.

        Temporary files of killed runs in the same folder are removed.

        Raises:
            OSError: If the file cannot be written. The checkpoint that was there before is still whole.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        for leftover in target.parent.glob(f".{target.name}.*.tmp"):
            leftover.unlink()
        temporary = target.parent / f".{target.name}.{os.getpid()}.tmp"
        try:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Writes the folder's entry of a renamed file to the disk, where the system knows folders as files."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
