"""The command ``zolit``: fit, validate, test and predict, by LightningCLI; bench, export, table and methods."""

from __future__ import annotations

import importlib
import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn, cast

import zolit_callbacks
from jsonargparse import ArgumentParser, Namespace, dict_to_namespace
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

import zolit.bench
import zolit.export
import zolit.methods
import zolit.methods.listing
from zolit.allocator import keep_freed_memory
from zolit.errors import NonFiniteLossError, UserError, require
from zolit.methods import MeZO
from zolit.module import REFUSE_16_MIXED, ZerothOrderModule
from zolit.optimizer import ZerothOrder
from zolit.predictions import predictions
from zolit.split import SplitStrategy
from zolit.strategies import ReplicatedStrategy
from zolit.tasks import PromptedData


class ZolitParser(LightningArgumentParser):
    """Says what is wrong with the options in one sentence, without the list of all options before it."""

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        sys.stderr.write(f"zolit: error: {explain(message)}\n")
        sys.exit(2)


def explain(message: str) -> str:
    """Puts jsonargparse's account of a bad option into one sentence that says what to do.

    Args:
        message: What jsonargparse says, over many lines where a type has many alternatives.
    """
    text = " ".join(message.split())
    key = named[1] if (named := re.match(r'Parser key "([^"]+)":', text)) else ""
    if refused := re.search(r"Option '([^']+)' is not accepted.*class_path='[^']*?([^.']+)'", text):
        return f"{key}: {refused[2]} has no option {refused[1]!r}; `zolit fit --{key}.help {refused[2]}` lists them"
    if key == "model.optimizer" and (path := re.search(r"Expected a path but (\S+) either", text)):
        return f"{key}: there is no method {path[1]!r}; known methods are {', '.join(zolit.methods.__all__)}"
    if key and (value := re.search(r"Given value: (.*)$", text)):
        wanted = re.search(r"Subtypes: (\[.*?\]) Errors", text)
        kinds = re.findall(r"<class '([^']+)'>|Literal\[(.*?)\]", wanted[1]) if wanted else []
        types = " or ".join(kind or choices for kind, choices in kinds) or "of another type"
        return f"{key}: {value[1]!r} is not valid, it must be {types}"
    return f"{text}; `zolit fit --help` and `zolit fit --model.optimizer.help CurvZO` list the options"


class ZolitCLI(LightningCLI):
    """LightningCLI with the module, the data module, a checkpoint callback and a summary at the end of a fit."""

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("model.name_or_path", "data.name_or_path")
        parser.link_arguments("model.trust_remote_code", "data.trust_remote_code")
        parser.add_lightning_class_args(zolit_callbacks.StepCheckpoint, "checkpoint")

    @override
    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        trainer = config.trainer
        # On a CPU, Lightning would turn it into bf16-mixed with a warning.
        require(str(trainer.precision) not in ("16-mixed", "16"), REFUSE_16_MIXED)
        require(
            not trainer.gradient_clip_val and trainer.accumulate_grad_batches == 1,
            "trainer.gradient_clip_val, trainer.accumulate_grad_batches: a forward-only step has no gradients to clip "
            "or add up; for large batches set data.batch_size and model.micro_batch_size",
        )
        path = config.get("ckpt_path")
        require(
            path in (None, "best", "last", "hpc", "registry") or "://" in path or Path(path).exists(),
            f"ckpt_path: there is no file {path}; runs write theirs to runs/.../checkpoints/last.ckpt",
        )
        config.model.optimizer = with_default_method(config.model.optimizer)
        # One option for all that is random, where no other is set.
        for seeded in (config.data, config.model.optimizer.get("init_args", {})):
            if "seed" in seeded:
                seeded["seed"] = seeded["seed"] or int(config.seed_everything or 0)
        # Several configurations may ask for one callback of ours; the last one's options count.
        callbacks = trainer.callbacks or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        ours = {c.class_path: i for i, c in enumerate(callbacks) if c.class_path.startswith("zolit_callbacks.")}
        trainer.callbacks = [c for i, c in enumerate(callbacks) if ours.get(c.class_path, i) == i]

    @override
    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:
            # Where an option may be an object or null, jsonargparse wraps what the object's constructor says.
            if isinstance(error.__cause__, UserError):
                raise error.__cause__ from None
            raise

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        callbacks = list(self._get(self.config_init, "trainer").callbacks)  # the base class adds to it
        trainer = super().instantiate_trainer(**kwargs)
        if type(trainer.strategy) is DDPStrategy and self.config[self.subcommand].trainer.strategy in ("auto", "ddp"):
            # What Lightning picks for several devices, or the user by `ddp`, would allocate gradient buckets.
            trainer = super().instantiate_trainer(**kwargs, callbacks=callbacks, strategy=ReplicatedStrategy())
        return trainer

    def after_fit(self) -> None:
        """Validates the final weights if the last validation did not see them, and writes the summary."""
        if self._summary.is_behind(self.trainer):
            # Under SLURM, Lightning would load a requeue checkpoint that lies in the folder over the final weights.
            last = cast("Any", self.trainer).checkpoint_callback.last_model_path if SLURMEnvironment.detect() else None
            self.trainer.validate(self.model, datamodule=self.datamodule, ckpt_path=last, verbose=False)
        self._summary.write(self.trainer)

    def before_predict(self) -> None:
        """Refuses what would lose the predictions."""
        alone = self.trainer.world_size == 1 or isinstance(self.trainer.strategy, SplitStrategy)
        require(alone, "trainer.devices: predictions are written by one process; take 1")

    def after_predict(self) -> None:
        """Writes a line for each example, in the file's order: its answer, and the probability of every one."""
        folder = Path(self.trainer.log_dir or self.trainer.default_root_dir)
        if not self.trainer.is_global_zero:
            return
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "predictions.jsonl").open("w", encoding="utf-8") as lines:
            for record in predictions(self.trainer.predict_loop.predictions, self.datamodule):
                lines.write(json.dumps(record) + "\n")
        rank_zero_info(f"predictions: {folder / 'predictions.jsonl'}")

    @override
    def after_instantiate_classes(self) -> None:
        self._summary = zolit_callbacks.RunSummary()
        cast("Any", self.trainer).callbacks.insert(0, self._summary)


def with_default_method(given: Namespace | None) -> Namespace:
    """Returns the optimizer's configuration with MeZO where no method is named.

    The parser itself has no default method: it would carry the options of its default over to the method that is named.

    Args:
        given: What was parsed: None where nothing was given. Where options were given without a method, jsonargparse
            fills in ``ZerothOrder``.
    """
    options = {} if given is None else dict(given.init_args)
    stages = [options.get(stage) for stage in ("selection", "perturbation", "prober", "estimator", "update")]
    if given is not None and (given.class_path.rpartition(".")[2] != ZerothOrder.__name__ or any(stages)):
        return given
    parser = ArgumentParser()
    parser.add_class_arguments(MeZO, skip={"model"})
    defaults = parser.get_defaults()
    defaults.update(dict_to_namespace({option: value for option, value in options.items() if option in defaults}))
    mezo: Namespace = dict_to_namespace({"class_path": "zolit.MeZO", "init_args": defaults})
    return mezo


def run(args: list[str] | None = None) -> ZolitCLI:
    """Parses the arguments and runs the subcommand.

    Args:
        args: Like ``sys.argv[1:]``, which None means.
    """
    return ZolitCLI(
        ZerothOrderModule,
        PromptedData,
        args=args,
        parser_class=ZolitParser,
        parser_kwargs={
            "prog": "zolit",
            "description": "Fine-tune language models with forward passes alone. Methods: zolit methods. "
            "What a step costs on this machine: zolit bench --help.",
        },
        auto_configure_optimizers=False,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        trainer_defaults={
            "logger": {
                "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
                "init_args": {"save_dir": "runs", "name": ""},
            },
            "default_root_dir": "runs",
            "num_sanity_val_steps": -1,
            "use_distributed_sampler": False,
        },
    )


def main() -> None:
    """Entry point of the command: what a user can mend is said in one sentence."""
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\)", category=FutureWarning)
    keep_freed_memory()
    try:
        if sys.argv[1:2] == ["bench"]:  # not of LightningCLI, whose subcommands are the trainer's
            zolit.bench.run(sys.argv[2:])
        elif sys.argv[1:2] == ["methods"]:
            zolit.methods.listing.show(zolit.methods.abouts())
        elif sys.argv[1:2] == ["export"]:
            zolit.export.run(sys.argv[2:])
        elif sys.argv[1:2] == ["table"]:
            # It runs this command line itself, so that neither can import the other at first.
            given, sys.argv[1:] = sys.argv[2:], []
            importlib.import_module("zolit.tables").run(given)
        else:
            run()
    except (UserError, NonFiniteLossError, MisconfigurationException) as error:
        sys.exit(f"zolit: error: {error}")
