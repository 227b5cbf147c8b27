"""From which law is a direction drawn, given (seed, step, direction, weight)?"""

from zolit.perturbation.activation import ActivationGuided
from zolit.perturbation.base import Perturbation
from zolit.perturbation.gaussian import Gaussian
from zolit.perturbation.low_rank import LowRank
from zolit.perturbation.pool import GaussianPool
from zolit.perturbation.rademacher import Rademacher

__all__ = ["ActivationGuided", "Gaussian", "GaussianPool", "LowRank", "Perturbation", "Rademacher"]
