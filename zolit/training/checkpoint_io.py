"""Saves checkpoints so that a file under its true name is always whole, and loads whole files of plain data only."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from typing_extensions import override

from zolit.errors import DivergedError, UserError
from zolit.files import replacing
from zolit.models.finite import first_not_finite
from zolit.optim.signals import deferred_signals
from zolit.reason import reason

_PARTS = {"state_dict": dict, "epoch": int, "global_step": int, "pytorch-lightning_version": str}
_OPTIONAL_PARTS = {"loops": dict, "callbacks": dict, "optimizer_states": list, "lr_schedulers": list}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file beside its target, and renames it when it is complete.

    Lightning writes to the folder of temporary files and moves the file from there. On another file system that is a
    copy: a process that is killed during the copy leaves a broken checkpoint, and the one before it is lost. The file
    goes to the disk without a copy in memory.
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Saves a checkpoint; see ``CheckpointIO.save_checkpoint``. Called by the process of rank 0.

        Handlers of signals that arrive meanwhile run afterwards, since a handler may save to the same path.

        Raises:
            DivergedError: If a weight is NaN or infinite. The checkpoint that was there before stays.
            OSError: If the file cannot be written. The checkpoint that was there before is still whole.
        """
        damaged = first_not_finite(checkpoint["state_dict"].items())
        if damaged is not None:
            raise DivergedError(
                f"after step {checkpoint['global_step']}, the weight {damaged} is not finite; the checkpoint was not "
                "saved, and those of earlier steps are whole: lower lr or eps"
            )
        with deferred_signals(interrupts=True), replacing(path) as temporary, temporary.open("wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # torch hides the error of the file system, such as a full disk
                cause = error.__cause__ or error.__context__
                if not isinstance(cause, OSError):
                    raise
                raise OSError(cause.errno, cause.strerror, str(path)) from None

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
        UserError: If the file is cut or changed, is no checkpoint, or holds code. The message names the newest whole
            checkpoint of the same run, if there is one.
    """
    fault = find_fault(path)
    if fault is None:
        return
    whole = newest_whole([Path(path).parent])
    way_on = f"the newest whole save is {whole}" if whole else "the run has no other whole save"
    raise UserError(f"ckpt_path: {path} {fault}; {way_on}")


def newest_whole(folders: Iterable[Path], name: str = "*.ckpt") -> Path | None:
    """Returns the newest whole checkpoint in some folders and in the folders below them; None if there is none.

    Args:
        folders: The folders.
        name: A pattern for the names of the files.
    """
    found = {(file.stat().st_mtime_ns, file) for folder in folders for file in folder.rglob(name) if file.is_file()}
    return next((file for _, file in sorted(found, reverse=True) if find_fault(file) is None), None)


def find_fault(path: str | Path) -> str | None:
    """Returns what is wrong with a checkpoint, as the rest of a sentence; None if it is whole and holds plain data."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except Exception as error:  # a damaged archive raises many kinds
        return f"is not a whole checkpoint ({reason(error)})"
    return f"is damaged, its part {damaged} was changed" if damaged else _find_other_content(path)


def _find_other_content(path: str | Path) -> str | None:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # torch raises many kinds, and its message advises to load the code
        return "is not a checkpoint of plain data; it was not loaded, since it may hold code"
    if not isinstance(content, Mapping) or not _has_parts(content):
        return "is not a checkpoint of zolit"
    if not all(isinstance(value, torch.Tensor) for value in content["state_dict"].values()):
        return "is not a checkpoint of zolit, its weights are no tensors"
    return None


def _has_parts(content: Mapping[str, Any]) -> bool:
    needed = all(isinstance(content.get(name), kind) for name, kind in _PARTS.items())
    return needed and all(isinstance(content.get(name, kind()), kind) for name, kind in _OPTIONAL_PARTS.items())
