"""Which blocks or parameters are perturbed, and with what probability?"""

from zolit.choice import Choice
from zolit.selection.base import Selection
from zolit.selection.budget import AdaptiveBudget, Budget, FixedBudget
from zolit.selection.everything import Everything
from zolit.selection.per_parameter import PerParameter
from zolit.selection.sampling import Curvature, Uniform
from zolit.selection.scores import BlockScores, ScoreRule

__all__ = [
    "AdaptiveBudget",
    "BlockScores",
    "Budget",
    "Choice",
    "Curvature",
    "Everything",
    "FixedBudget",
    "PerParameter",
    "ScoreRule",
    "Selection",
    "Uniform",
]
