"""From a few losses, which coefficients over the drawn directions?"""

from zolit.estimators.base import Estimate, Estimator, Evaluate
from zolit.estimators.per_example import PerExampleSPSA
from zolit.estimators.spsa import SPSA

__all__ = ["SPSA", "Estimate", "Estimator", "Evaluate", "PerExampleSPSA"]
