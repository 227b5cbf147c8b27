"""Saves checkpoints so that a file under its true name is always whole, and loads whole files of plain data only."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from typing_extensions import override

from zolit.errors import UserError, require


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

    @override
    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = lambda storage, loc: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Checks and loads a checkpoint; see ``CheckpointIO.load_checkpoint``. Never runs code that a file holds."""
        check_checkpoint(path)
        return super().load_checkpoint(path, map_location, weights_only=True)


def check_checkpoint(path: str | Path) -> None:
    """Checks that a file is a whole checkpoint of plain data. Called before a checkpoint is used.

    Raises:
        UserError: If the file is cut or changed, is no checkpoint, or holds code.
    """
    advice = "resume from another save of the run, such as best.ckpt"
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise UserError(f"ckpt_path: {path} is not a whole checkpoint ({error}); {advice}") from None
    require(damaged is None, f"ckpt_path: {path} is damaged, its part {damaged} was changed; {advice}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # torch raises many kinds, and its message advises to load the code
        raise UserError(
            f"ckpt_path: {path} is not a checkpoint of plain data; it was not loaded, since it may hold code"
        ) from None
    require(
        isinstance(content, dict) and isinstance(content.get("state_dict"), dict),
        f"ckpt_path: {path} is not a checkpoint of zolit, it has no weights; {advice}",
    )


def _sync_folder(folder: Path) -> None:
    """Writes the folder's entry of a renamed file to the disk, where the system knows folders as files."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
