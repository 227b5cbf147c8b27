"""The subcommands fit, validate, test and predict, built on LightningCLI."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, ClassVar, cast

import zolit_callbacks
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from zolit.cli.code import HELP, OPTION, OWN_MODULES, import_code, split_code
from zolit.cli.endings import explain_stop, print_line, stop_children
from zolit.cli.library_errors import explained, from_callback
from zolit.cli.parser import ZolitParser, with_default_method
from zolit.cli.predictions import predictions
from zolit.cli.run_folder import DEFAULT_ROOT, claim, find_save, has_requeue_checkpoint, job_folder, move_loggers
from zolit.cli.trust import check_configuration, check_files, require_local, restrict_imports
from zolit.data.datamodule import PromptedData
from zolit.errors import Stopped, require, require_one_of
from zolit.files import replacing, to_json
from zolit.training.module import REFUSE_16_MIXED, ZerothOrderModule
from zolit.training.replicated import ReplicatedStrategy
from zolit.training.restoring import explain_failure
from zolit.training.safe_points import hold_requeue_signal
from zolit.training.split import SplitStrategy

_LARGEST_SEED = 2**32 - 1  # of numpy
_STRATEGIES = ("auto", "single_device", "ddp", "replicated", "split")


class ZolitCLI(LightningCLI):
    """LightningCLI with zolit's module, data module and checkpoint callback, and a summary at the end of a fit.

    Attributes:
        failure: Why a fit learned nothing; None if it may have learned, and for all other subcommands.
        module_class: Class of the module.
        of_trainer: Class of the trainer.
        claims_folder: Whether a run has a folder, in which its options are saved.
    """

    failure: str | None = None
    module_class: ClassVar[type[ZerothOrderModule]] = ZerothOrderModule
    of_trainer: ClassVar[type[Trainer]] = Trainer
    claims_folder: ClassVar[bool] = True

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Links the options that model and data share, and adds the options of the checkpoint callback."""
        parser.link_arguments("model.name_or_path", "data.name_or_path")
        parser.link_arguments("model.trust_remote_code", "data.trust_remote_code")
        parser.add_lightning_class_args(zolit_callbacks.StepCheckpoint, "checkpoint")

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses the arguments of the command line."""
        # Unlike the base class, this does not warn that ``args`` differs from ``sys.argv``, which also has --code.
        assert isinstance(args, list)
        with explained("command line"):
            self.config = parser.parse_args(args)

    @override
    def _parse_ckpt_path(self) -> None:
        """Refuses addresses. The hyperparameters of the checkpoint are not read."""
        # The base class lays the checkpoint's ``hyper_parameters`` over the command line: a stranger's options.
        path = self.config[self.config.subcommand].get("ckpt_path")
        if path is not None:
            require_local(path)

    @override
    def _set_seed(self) -> None:
        """Seeds the generators. The base class calls this after the parsing."""
        seed = self.config[self.subcommand].seed_everything
        require(seed is None or 0 <= seed <= _LARGEST_SEED, f"seed_everything: {seed} is not from 0 to {_LARGEST_SEED}")
        super()._set_seed()

    @override
    def before_instantiate_classes(self) -> None:
        """Checks options of the trainer, and sets the default method, the seeds and the callbacks."""
        config = self.config[self.subcommand]
        trainer = config.trainer
        check_configuration(config, ZolitParser.command_line, OWN_MODULES)
        # On a CPU, Lightning would change 16-mixed to bf16-mixed with a warning.
        require(str(trainer.precision) not in ("16-mixed", "16"), REFUSE_16_MIXED)
        require(
            not trainer.gradient_clip_val and trainer.accumulate_grad_batches == 1,
            "trainer.gradient_clip_val, trainer.accumulate_grad_batches: a forward-only step has no gradients to clip "
            "or accumulate; for large batches set data.batch_size and model.micro_batch_size",
        )
        for name in ("val_check_interval", "check_val_every_n_epoch"):
            every = trainer[name]
            require(
                every is None or not isinstance(every, int | float) or every > 0,
                f"trainer.{name}: {every} must be above 0",
            )
        if isinstance(trainer.strategy, str):  # others would shard or wrap what a forward-only step needs whole
            require_one_of("trainer.strategy", trainer.strategy, _STRATEGIES)
        has_length = trainer.max_steps != -1 or trainer.max_epochs is not None or trainer.max_time is not None
        require(
            self.subcommand != "fit" or has_length,
            "trainer.max_steps: the run has no length; add --config configs/run/short.yaml, or set the number of steps",
        )
        move_loggers(trainer)
        trainer.default_root_dir = job_folder(trainer.default_root_dir, ZolitParser.command_line)
        if config.get("ckpt_path") in ("best", "last"):
            may_begin = self.subcommand == "fit" and config.ckpt_path == "last"
            config.ckpt_path = find_save(config.ckpt_path, config, may_begin)
            rank_zero_info(f"ckpt_path: {config.ckpt_path or 'there is no checkpoint yet, the run begins'}")
        path = config.get("ckpt_path")
        require(
            path is None or Path(path).exists() or (path == "hpc" and has_requeue_checkpoint(trainer.default_root_dir)),
            f"ckpt_path: there is no file {path}; runs write checkpoints to runs/.../checkpoints/last.ckpt",
        )
        config.model.optimizer = with_default_method(config.model.optimizer)
        # seed_everything sets each seed that has no other value. A method of the user may have 0 as its default.
        method = config.model.optimizer
        unset = (None,) if method.class_path.startswith("zolit.") else (None, 0)
        for seeded, without in ((config.data, (None,)), (method.get("init_args", {}), unset)):
            if seeded.get("seed", "none") in without:
                seeded["seed"] = int(config.seed_everything or 0)
        # Several configurations may name the same callback of zolit_callbacks; the options of the last one count.
        callbacks = trainer.callbacks or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        ours = {c.class_path: i for i, c in enumerate(callbacks) if c.class_path.startswith("zolit_callbacks.")}
        trainer.callbacks = [c for i, c in enumerate(callbacks) if ours.get(c.class_path, i) == i]

    @override
    def instantiate_classes(self) -> None:
        """Creates trainer, module and data module. What a constructor refuses becomes one sentence."""
        with explained("configuration"):
            super().instantiate_classes()

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Creates the trainer; several devices use ``ReplicatedStrategy`` instead of DDP."""
        callbacks = list(self._get(self.config_init, "trainer").callbacks)  # the base class adds to it
        with explained("trainer"):
            trainer = super().instantiate_trainer(**kwargs)
        if type(trainer.strategy) is DDPStrategy and self.config[self.subcommand].trainer.strategy in ("auto", "ddp"):
            # DDP, Lightning's choice for several devices, would allocate gradient buckets.
            trainer = super().instantiate_trainer(**kwargs, callbacks=callbacks, strategy=ReplicatedStrategy())
        if trainer.is_global_zero and self.claims_folder:
            claim(trainer)
        return trainer

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        """Runs the subcommand. If a signal ends it, says what is saved, and how to go on."""
        try:
            super()._run_subcommand(subcommand)
        except Stopped as stopped:
            stop_children(self.trainer)
            if self.trainer.is_global_zero:
                print_line(explain_stop(stopped, self.trainer, ZolitParser.command_line))
            stopped.explained = True
            raise
        except Exception as error:
            path = self.config[subcommand].get("ckpt_path")
            if sentence := explain_failure(error, path) or from_callback(error):
                raise sentence from error
            raise

    def after_fit(self) -> None:
        """Validates the final weights unless the last validation did, writes the summary, and judges the run."""
        if self._summary.is_behind(self.trainer):
            # Under SLURM, Lightning would replace the final weights by those of a requeue checkpoint in the folder.
            last = cast("Any", self.trainer).checkpoint_callback.last_model_path if SLURMEnvironment.detect() else None
            self.trainer.validate(self.model, datamodule=self.datamodule, ckpt_path=last, verbose=False)
        self._summary.write(self.trainer)
        self.failure = self._health.verdict(self.trainer)
        if SLURMEnvironment.detect() and self.trainer.is_global_zero:  # the job is done, and needs no requeue
            for save in Path(self.trainer.default_root_dir).glob("hpc_ckpt_*.ckpt"):
                save.unlink()

    def before_predict(self) -> None:
        """Refuses several processes, each of which would have only a part of the predictions."""
        alone = self.trainer.world_size == 1 or isinstance(self.trainer.strategy, SplitStrategy)
        require(alone, "trainer.devices: only one process can write predictions; set it to 1")

    def after_predict(self) -> None:
        """Writes one line for each example, in the file's order: its answer, and the probabilities of all answers."""
        folder = Path(self.trainer.log_dir or self.trainer.default_root_dir)
        if not self.trainer.is_global_zero:
            return
        with replacing(folder / "predictions.jsonl") as temporary, temporary.open("w", encoding="utf-8") as lines:
            for record in predictions(self.trainer.predict_loop.predictions, self.datamodule):
                lines.write(to_json(record) + "\n")
        rank_zero_info(f"predictions: {folder / 'predictions.jsonl'}")

    @override
    def after_instantiate_classes(self) -> None:
        """Adds the callbacks that write the summary of a fit and say when it goes wrong."""
        self._summary, self._health = zolit_callbacks.RunSummary(), zolit_callbacks.HealthMonitor()
        cast("Any", self.trainer).callbacks[:0] = [self._summary, self._health]


def run(args: list[str] | None = None, cli: type[ZolitCLI] = ZolitCLI) -> ZolitCLI:
    """Imports the files of ``--code``, parses the other arguments, and runs the subcommand.

    Args:
        args: The arguments; None for ``sys.argv[1:]``. Neither is changed, since processes of a distributed run start
            with the same ``sys.argv``.
        cli: The subcommands.
    """
    files, options = split_code(sys.argv[1:] if args is None else args)
    if options[:1] == ["fit"]:
        hold_requeue_signal()
    check_files(options)
    import_code(files)
    restrict_imports(OWN_MODULES)
    ZolitParser.command_line = [*options[:1], *(f"{OPTION}={file}" for file in files), *options[1:]]
    return cli(
        cli.module_class,
        PromptedData,
        save_config_callback=SaveConfigCallback if cli.claims_folder else None,
        trainer_class=cli.of_trainer,
        args=options,
        parser_class=ZolitParser,
        parser_kwargs={
            "prog": "zolit",
            "description": "Fine-tune language models with forward passes alone. Methods: zolit methods. "
            "Time and memory of a step on this machine: zolit bench --help. "
            "Jacobians of a model for DirectFeedback: zolit calibrate --help. "
            f"{OPTION} FILE.py: {HELP}",
            **{subcommand: {"epilog": f"{OPTION} FILE.py: {HELP}"} for subcommand in cli.subcommands()},
        },
        auto_configure_optimizers=False,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        trainer_defaults={
            "logger": {
                "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
                "init_args": {"save_dir": DEFAULT_ROOT, "name": ""},
            },
            "default_root_dir": DEFAULT_ROOT,
            "num_sanity_val_steps": -1,
            "use_distributed_sampler": False,
        },
    )
