"""From which law is a direction drawn, given (seed, step, direction, weight)?"""

from zolit.perturbation.activation import ActivationGuided
from zolit.perturbation.base import Perturbation
from zolit.perturbation.diagonal import DiagonalCurvature
from zolit.perturbation.gaussian import Gaussian
from zolit.perturbation.low_rank import LowRank
from zolit.perturbation.lozo import LazyLowRank
from zolit.perturbation.one_shot import OneShotBasis
from zolit.perturbation.pool import GaussianPool
from zolit.perturbation.rademacher import Rademacher
from zolit.perturbation.subspace import ActivationSubspace
from zolit.perturbation.subzero import OrthogonalSubspace

__all__ = [
    "ActivationGuided",
    "ActivationSubspace",
    "DiagonalCurvature",
    "Gaussian",
    "GaussianPool",
    "LazyLowRank",
    "LowRank",
    "OneShotBasis",
    "OrthogonalSubspace",
    "Perturbation",
    "Rademacher",
]
