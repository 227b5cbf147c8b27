"""From a few losses, which coefficients over the drawn directions?"""

from zolit.estimators.base import Estimate, Estimator, Evaluate
from zolit.estimators.bayesian import Bayesian
from zolit.estimators.central import Central
from zolit.estimators.guiding import Greedy, Guiding
from zolit.estimators.normalized import NormalizedOneSided
from zolit.estimators.nothing import NoProbes
from zolit.estimators.one_sided import OneSided
from zolit.estimators.per_example import PerExampleSPSA
from zolit.estimators.spsa import SPSA

__all__ = [
    "SPSA",
    "Bayesian",
    "Central",
    "Estimate",
    "Estimator",
    "Evaluate",
    "Greedy",
    "Guiding",
    "NoProbes",
    "NormalizedOneSided",
    "OneSided",
    "PerExampleSPSA",
]
