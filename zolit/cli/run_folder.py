"""The folder of a run: claimed by one run alone, and searched for the checkpoint to go on from."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from jsonargparse import Namespace
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from zolit.errors import UserError, require
from zolit.training.checkpoint_io import newest_whole

DEFAULT_ROOT = "runs"


def move_loggers(trainer: Namespace) -> None:
    """Lets ``trainer.default_root_dir`` move the logs too, and with them checkpoints, summary and predictions.

    A logger has an option of its own, ``save_dir``. A logger that has it still at the default, "runs", follows the
    trainer. Called before classes are instantiated.

    Args:
        trainer: The options of the trainer.
    """
    for options in _logger_options(trainer):
        if options.get("save_dir") == DEFAULT_ROOT and trainer.default_root_dir:
            options.save_dir = trainer.default_root_dir


def _logger_options(trainer: Namespace) -> list[Namespace]:
    loggers = trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]
    return [logger.init_args for logger in loggers if hasattr(logger, "init_args")]


def claim(trainer: Trainer) -> None:
    """Makes the next free folder ``version_N`` for a run. Called on rank 0, before anything names the folder.

    Lightning takes the highest number plus one, and makes the folder later. Two runs that begin at the same moment
    would share it. Of two processes that make a folder, the file system lets one succeed. Without a logger, Lightning
    would use ``trainer.default_root_dir`` itself for all runs.

    Raises:
        OSError: If the folder cannot be made.
        UserError: If the name of the folder is that of a file.
    """
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger | CSVLogger) and logger._version is None:
            logger._version = _make_next(logger.root_dir, logger._get_next_version)
    if not trainer.loggers and not SLURMEnvironment.detect():  # the folder of a job is found again by its name
        root = trainer.default_root_dir
        version = _make_next(root, CSVLogger(root, name="")._get_next_version)
        trainer._default_root_dir = str(Path(root, f"version_{version}"))  # type: ignore[attr-defined]  # not declared


def _make_next(root: str, next_version: Callable[[], int]) -> int:
    while True:
        version = next_version()
        folder = Path(root, f"version_{version}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            require(folder.is_dir(), f"trainer.logger: {folder} is a file, where the folder of the run must be")
            continue
        return version


def find_save(name: str, config: Namespace, may_begin: bool) -> str | None:
    """Returns the checkpoint that ``--ckpt_path last`` or ``--ckpt_path best`` stands for: the newest whole one.

    All folders of runs below the logger's ``save_dir`` and ``name`` are searched, or those below
    ``trainer.default_root_dir`` if there is no logger.

    Args:
        name: ``last`` takes any checkpoint, ``best`` only those named best.ckpt.
        config: The options of the subcommand.
        may_begin: Whether a first run may have nothing to go on from, as in a script that is started again and again.

    Returns:
        The file; None if there is no checkpoint at all, and ``may_begin`` is set.

    Raises:
        UserError: If there is no whole checkpoint.
    """
    folders = _folders(config)
    if save := newest_whole(folders, "*.ckpt" if name == "last" else "best.ckpt"):
        return str(save)
    if may_begin and not any(any(folder.rglob("*.ckpt")) for folder in folders):
        return None
    raise UserError(f"ckpt_path: there is no whole checkpoint below {' or '.join(map(str, folders))}; name a file")


def _folders(config: Namespace) -> list[Path]:
    options = _logger_options(config.trainer)
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


def has_requeue_checkpoint(root: str | None) -> bool:
    """Returns whether ``--ckpt_path hpc`` finds a checkpoint that was saved for a requeued job."""
    return any(Path(root or ".").glob("hpc_ckpt_*.ckpt"))
