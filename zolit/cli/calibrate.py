"""``zolit calibrate``: measures the mean Jacobians of a base model once, for DirectFeedback."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, cast

from lightning.pytorch.callbacks import ProgressBar
from typing_extensions import override

from zolit.cli.lightning_cli import ZolitCLI
from zolit.cli.lightning_cli import run as run_cli
from zolit.training.calibration import CalibratedModule, CalibratingTrainer


class CalibrationCLI(ZolitCLI):
    """The command line of a fit, with which a model is measured rather than trained. No folder of a run is made."""

    module_class = CalibratedModule
    of_trainer = CalibratingTrainer
    claims_folder = False

    @staticmethod
    @override
    def subcommands() -> dict[str, set[str]]:
        """Returns the only subcommand, and the arguments of its function that are no options."""
        return {"calibrate": {"model", "datamodule"}}

    @override
    def before_instantiate_classes(self) -> None:
        """Leaves out what belongs to a fit: its logs, its callbacks, and limits of the number of batches."""
        super().before_instantiate_classes()
        trainer = self.config.calibrate.trainer
        trainer.logger, trainer.callbacks, trainer.fast_dev_run, trainer.limit_predict_batches = False, [], False, None

    @override
    def after_instantiate_classes(self) -> None:
        """Removes the callbacks of a fit, such as the one that saves checkpoints."""
        trainer = cast("Any", self.trainer)
        trainer.callbacks = [own for own in trainer.callbacks if isinstance(own, ProgressBar)]

    def after_calibrate(self) -> None:
        """Prints what was measured. The base class calls this after the subcommand."""
        measured = cast("CalibratingTrainer", self.trainer).measured
        file = self.config.calibrate.output
        print(f"forwards: {measured.forwards}")
        print(f"tokens:   {measured.tokens:,} for the fit")
        print(f"fit:      {described(measured.fits)} (R² on other batches)")
        print(f"written:  {file} ({Path(file).stat().st_size / 2**20:.3g} MiB, {len(measured.fits)} layers)")


def described(fits: Sequence[float]) -> str:
    """Returns the median, the lowest and the highest fit, with their layers.

    Args:
        fits: R² of each layer, from the first to the last.
    """
    low, high = (pick(range(len(fits)), key=fits.__getitem__) for pick in (min, max))
    return f"median {median(fits):.3f}, lowest {fits[low]:.3f} (layer {low}), highest {fits[high]:.3f} (layer {high})"


def run() -> None:
    """Parses the arguments after ``zolit``, and measures."""
    run_cli(cli=CalibrationCLI)
