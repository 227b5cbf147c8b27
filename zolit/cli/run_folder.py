"""The folder of a run: claimed by one run alone, and searched for the checkpoint to go on from."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from zolit.errors import UserError, require
from zolit.training.checkpoint_io import find_fault, saves_below


def claim(loggers: Sequence[Logger]) -> None:
    """Makes the next free folder ``version_N`` of each logger. Called on rank 0, before a logger names its folder.

    Lightning takes the highest number plus one, and makes the folder later. Two runs that begin at the same moment
    would share it. Of two processes that make a folder, the file system lets one succeed.

    Raises:
        OSError: If the folder cannot be made.
    """
    for logger in loggers:
        if not isinstance(logger, TensorBoardLogger | CSVLogger) or logger._version is not None:
            continue
        while True:
            version = logger._get_next_version()
            folder = Path(logger.root_dir, f"version_{version}")
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                require(folder.is_dir(), f"trainer.logger: {folder} is a file, where the folder of the run must be")
                continue
            logger._version = version
            break


def find_save(name: str, config: Namespace) -> str:
    """Returns the checkpoint that ``--ckpt_path last`` or ``--ckpt_path best`` stands for: the newest whole one.

    All folders of runs below the logger's ``save_dir`` and ``name`` are searched, or those below
    ``trainer.default_root_dir`` if there is no logger.

    Args:
        name: ``last`` takes any checkpoint, ``best`` only those named best.ckpt.
        config: The options of the subcommand.

    Raises:
        UserError: If there is no whole checkpoint.
    """
    folders = _folders(config)
    found = sorted({file for folder in folders for file in saves_below(folder)}, key=_time, reverse=True)
    for file in found:
        if (name == "last" or file.name == "best.ckpt") and find_fault(file) is None:
            return str(file)
    raise UserError(f"ckpt_path: there is no whole checkpoint below {' or '.join(map(str, folders))}; name a file")


def _time(file: Path) -> int:
    return file.stat().st_mtime_ns


def _folders(config: Namespace) -> list[Path]:
    loggers = config.trainer.logger if isinstance(config.trainer.logger, list) else [config.trainer.logger]
    options = [logger.init_args for logger in loggers if hasattr(logger, "init_args")]
    logged = [Path(own.save_dir, own.get("name") or "") for own in options if own.get("save_dir")]
    named = [config.checkpoint.dirpath] if config.get("checkpoint") and config.checkpoint.dirpath else []
    return [*logged, *map(Path, named)] or [Path(config.trainer.default_root_dir or ".")]


def job_folder(root: str | None, args: Sequence[str]) -> str | None:
    """Returns the folder in which a SLURM job keeps its requeue checkpoints; ``root`` outside of SLURM.

    Lightning resumes from any requeue checkpoint in ``trainer.default_root_dir``. The folder therefore belongs to one
    command of one job.

    Args:
        root: ``trainer.default_root_dir``.
        args: The arguments of the command.
    """
    if not SLURMEnvironment.detect():
        return root
    array, job = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ["SLURM_JOB_ID"]
    name = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else job
    return str(Path(root or "", f"job_{name}", f"{zlib.crc32(' '.join(args).encode()):08x}"))
