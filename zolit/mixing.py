"""Rooms can be mixed freely but for what is refused here, with the reason."""

from __future__ import annotations

from zolit.errors import require
from zolit.estimators import Estimator
from zolit.perturbation import ActivationGuided, Gaussian, GaussianPool, LowRank, Perturbation, Rademacher
from zolit.probing import Individual, Prober, Streamed
from zolit.selection import Everything, Selection
from zolit.selection.sampling import BlockSampling
from zolit.updates import SGD, Update

_BY_KEYS = (Gaussian, GaussianPool, Rademacher, LowRank, ActivationGuided)


def check_mix(selection: Selection, perturbation: Perturbation, prober: Prober, estimator: Estimator) -> None:
    """Checks that four rooms go together.

    Raises:
        UserError: If they do not.
    """
    apart = isinstance(prober, Individual)
    law = type(perturbation).__name__
    require(
        apart or estimator.directions != 0,
        f"estimator: {type(estimator).__name__} wants a loss for each example along a direction of its own, which only "
        f"the prober zolit.probing.Individual gives, not {type(prober).__name__}",
    )
    require(
        not apart or estimator.directions == 0,
        f"prober: Individual gives every example a direction of its own, and {type(estimator).__name__} asks along "
        "shared ones; take zolit.probing.Streamed, or the estimator zolit.estimators.PerExampleSPSA",
    )
    require(
        not apart or perturbation.factored,
        f"perturbation: {law} has no factors, and the prober Individual applies directions as products of thin "
        "matrices; take zolit.perturbation.LowRank or ActivationGuided",
    )
    require(
        not apart or not selection.masks,
        f"selection: {type(selection).__name__} leaves single parameters out, and the prober Individual applies "
        "directions as products of thin matrices, which have no single parameters; select blocks",
    )
    require(
        apart or not isinstance(perturbation, ActivationGuided),
        "perturbation: ActivationGuided draws from each example's own activations, which only the prober "
        "zolit.probing.Individual shows it; for a batch's activations there is AGZO",
    )


def check_split(selection: Selection, perturbation: Perturbation, prober: Prober, update: Update) -> None:
    """Checks that four rooms go with weights that processes share out: that none looks at or keeps something of all.

    Raises:
        UserError: If one does.
    """
    fitting = {
        selection: isinstance(selection, Everything | BlockSampling),
        perturbation: type(perturbation) in _BY_KEYS,  # what derives from them may look at activations
        prober: isinstance(prober, Streamed | Individual),
        update: type(update) is SGD and not update.momentum,
    }
    others = [type(room).__name__ for room, fits in fitting.items() if not fits]
    require(
        not others,
        f"trainer.strategy: with `split` no process has all weights, and {' and '.join(others)} may look at them or "
        "keep something of each; take MeZO, CurvZO, BSZO, FZOO or PerExample, without momentum",
    )
