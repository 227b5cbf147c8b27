"""Measures the mean Jacobians of a base model on training data, and writes them to a file for DirectFeedback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from torch.utils.data import DataLoader
from typing_extensions import override

from zolit.data.datamodule import PromptedData
from zolit.errors import UserError, require
from zolit.files import replacing
from zolit.models.batches import Batch
from zolit.models.tuning import Full
from zolit.optim.base_point import NotFinite
from zolit.optim.feedback.calibration import Calibration, Measured
from zolit.optim.feedback.saved import write_jacobians
from zolit.tasks.task import Task
from zolit.training.module import ZerothOrderModule
from zolit.training.objective import Objective

_EACH = 8  # one of so many batches tests the fit


class CalibratedModule(ZerothOrderModule):
    """Makes the forwards of a calibration in the place of predictions, with the base model alone.

    The options are those of ``ZerothOrderModule``. The tuning, the method and the objective are not used.
    """

    def expect(self, task: Task, first_held_out: int, seed: int) -> None:
        """Says what comes. Called before the first batch.

        Args:
            task: The task of the batches.
            first_held_out: Index of the first batch that tests the fit. The batches before it are fitted.
            seed: Seed of the noise.
        """
        self._tuning = Full()
        self._likelihood = Objective("lm", task, None)  # one forward a batch, and no generated answers
        self._first_held_out = first_held_out
        self._seed = seed

    @override
    def configure_model(self) -> None:
        """Loads the base model; see ``LightningModule.configure_model``."""
        super().configure_model()
        assert self.model is not None
        self.calibration = Calibration(self.model, self._seed)

    @override
    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Makes two forwards. Called once for each batch."""
        self._look_at(batch)
        held_out = batch_idx >= self._first_held_out
        self.calibration.add(lambda: self._likelihood.losses(self._language, batch), held_out)
        return {}


class CalibratingTrainer(Trainer):
    """A trainer that can also calibrate.

    Attributes:
        measured: What the calibration has measured.
    """

    measured: Measured

    def calibrate(
        self, model: CalibratedModule, datamodule: PromptedData, output: str = "", forwards: int = 64
    ) -> None:
        """Measures the mean Jacobians of a base model once, and writes them to a file for zolit.DirectFeedback.

        Args:
            model: The module.
            datamodule: The data. Batches of training examples are taken.
            output: The file to write, in the format of safetensors.
            forwards: Number of forwards, two for each batch: without and with noise. One of eight batches tests the
                fit. More forwards than two for each batch of an epoch are not made.

        Raises:
            UserError: If an option is out of its range, there is one batch only, or a number is not finite.
        """
        require(self.world_size == 1, "trainer.devices: one process measures the Jacobians; set it to 1")
        require(forwards >= 4, f"forwards: two batches take 4 forwards, so {forwards} are too few")
        require(bool(output), "output: name the file to write, as in --output jacobians.safetensors")
        require(not Path(output).is_dir(), f"output: {output} is a folder; name a file")
        datamodule.prepare_data()
        datamodule.setup("fit")
        batches = datamodule.first_batches(forwards // 2)
        require(
            len(batches) > 1,
            "data: the training data is one batch, and a second one must test the fit; set "
            "data.batch_size to a smaller number",
        )
        model.expect(datamodule.task, len(batches) - max(1, len(batches) // _EACH), datamodule.seed)
        try:
            loader: DataLoader[Batch] = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]  # a list will do
            self.predict(model, dataloaders=loader, return_predictions=False)
            self.measured = model.calibration.solved()
        except NotFinite:
            raise UserError(
                "zolit calibrate: a loss or a Jacobian is NaN or infinite; set trainer.precision 32-true"
            ) from None
        assert model.model is not None
        with replacing(output) as temporary:
            write_jacobians(temporary, self.measured, model.model)
