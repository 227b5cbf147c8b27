"""Refuses combinations of stages that do not work, with the reason. All other combinations are allowed."""

from __future__ import annotations

from zolit.errors import require
from zolit.optim.estimators.base import Estimator
from zolit.optim.perturbation.base import Perturbation
from zolit.optim.perturbation.gaussian import Gaussian
from zolit.optim.perturbation.gaussian_pool import GaussianPool
from zolit.optim.perturbation.low_rank.activation_guided import ActivationGuided
from zolit.optim.perturbation.low_rank.low_rank import LowRank
from zolit.optim.perturbation.rademacher import Rademacher
from zolit.optim.probing.base import Prober
from zolit.optim.probing.per_example.prober import PerExampleProber
from zolit.optim.probing.streamed.prober import Streamed
from zolit.optim.selection.all_blocks import AllBlocks
from zolit.optim.selection.base import Selection
from zolit.optim.selection.curvature.sampling import BlockSampling
from zolit.optim.updates.base import Update
from zolit.optim.updates.sgd import SGD

_DRAWN_FROM_KEYS = (Gaussian, GaussianPool, Rademacher, LowRank, ActivationGuided)


def check_compatible(
    selection: Selection, perturbation: Perturbation, prober: Prober, estimator: Estimator, update: Update
) -> None:
    """Checks that five stages work together. Called once, by the optimizer's constructor.

    It compares attributes only, so that stages of the user are checked too.

    Raises:
        UserError: If two of the stages do not work together.
    """
    law, chosen, moves = type(perturbation).__name__, type(selection).__name__, type(update).__name__
    per_example, measures = prober.per_example, type(estimator).__name__
    require(
        per_example or not estimator.per_example,
        f"estimator: {measures} needs the loss of each example along a separate direction, which "
        f"{type(prober).__name__} does not compute; use the prober zolit.optim.PerExampleProber",
    )
    require(
        not per_example or estimator.per_example,
        f"prober: {type(prober).__name__} gives each example a separate direction, but {measures} needs shared "
        "directions; use the prober zolit.optim.Streamed, or the estimator zolit.optim.PerExampleSPSA",
    )
    require(
        not per_example or perturbation.factors_all_weights,
        f"perturbation: {law} has no factors for all weights, but {type(prober).__name__} applies directions as "
        "products of thin matrices; use zolit.optim.LowRank or zolit.optim.ActivationGuided",
    )
    require(
        not per_example or not selection.masks,
        f"selection: {chosen} leaves out single parameters, but {type(prober).__name__} applies directions as "
        "products of thin matrices, which cannot be masked; use a selection of whole blocks",
    )
    require(
        per_example or not perturbation.needs_examples,
        f"perturbation: {law} draws from each example's activations, which only the prober "
        "zolit.optim.PerExampleProber provides; use this prober, or AGZO for the activations of a batch",
    )
    require(
        estimator.measures_curvatures or not perturbation.needs_curvatures,
        f"estimator: {law} learns from curvatures, which {measures} does not measure; use zolit.optim.Central",
    )
    require(
        estimator.probes or not update.uses_estimate,
        f"estimator: {measures} measures no loss along a direction, but {moves} moves weights by such losses; use "
        "another estimator, or an update that needs none: zolit.optim.Backprop without `rest`, zolit.optim.Feedback",
    )
    require(
        update.uses_estimate or not estimator.probes,
        f"estimator: {moves} moves weights without probes, and would not use the losses that {measures} "
        "measures; use zolit.optim.NoProbes, or another update",
    )
    require(
        update.backprop_is_chosen or not selection.leaves_to_backprop,
        f"selection: {chosen} leaves blocks to backpropagation, but {moves} does not train them; use the method "
        "zolit.HiZFO, or another selection",
    )
    require(
        update.uses_estimate or update.backprop_is_chosen or selection.selects_all,
        f"selection: {moves} moves weights without probes, whatever {chosen} selects; use "
        "zolit.optim.AllBlocks, and choose the weights by model.tuning",
    )


def check_split(selection: Selection, perturbation: Perturbation, prober: Prober, update: Update) -> None:
    """Checks that no stage needs all weights in one process. Called once, by the strategy that splits the weights.

    Raises:
        UserError: If a stage needs all weights.
    """
    fitting = {
        selection: isinstance(selection, AllBlocks | BlockSampling),
        perturbation: type(perturbation) in _DRAWN_FROM_KEYS,  # subclasses may need activations
        prober: isinstance(prober, Streamed | PerExampleProber),
        update: type(update) is SGD and not update.momentum,
    }
    others = [type(stage).__name__ for stage, fits in fitting.items() if not fits]
    require(
        not others,
        f"trainer.strategy: with `split` no process has all weights, and {' and '.join(others)} may read them or keep "
        "state for each; use MeZO, CurvZO, BSZO, FZOO or PerExample, without momentum",
    )
