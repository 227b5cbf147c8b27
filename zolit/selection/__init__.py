"""Which blocks or parameters are perturbed, and with what probability?"""

from zolit.choice import Choice
from zolit.selection.base import Selection
from zolit.selection.budget import AdaptiveBudget, Budget, FixedBudget
from zolit.selection.dominant import OneLayer
from zolit.selection.everything import Everything
from zolit.selection.knapsack import Knapsack
from zolit.selection.magnitude import SmallWeights
from zolit.selection.per_parameter import PerParameter
from zolit.selection.published import PublishedCurvature
from zolit.selection.sampling import Curvature, Uniform
from zolit.selection.scores import BlockScores, ScoreRule
from zolit.selection.sensitive import SensitiveWeights

__all__ = [
    "AdaptiveBudget",
    "BlockScores",
    "Budget",
    "Choice",
    "Curvature",
    "Everything",
    "FixedBudget",
    "Knapsack",
    "OneLayer",
    "PerParameter",
    "PublishedCurvature",
    "ScoreRule",
    "Selection",
    "SensitiveWeights",
    "SmallWeights",
    "Uniform",
]
