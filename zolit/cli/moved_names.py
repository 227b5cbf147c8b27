"""Class paths of earlier versions, which runs' config.yaml and users' files may still contain."""

from __future__ import annotations

import re
from collections.abc import Mapping

_STAGES = {
    "selection": "AdaptiveBudget BlockScores Curvature Everything FixedBudget Knapsack OneLayer PerParameter "
    "PublishedCurvature ScoreRule Selection SensitiveWeights SmallWeights Uniform",
    "perturbation": "ActivationGuided ActivationSubspace DiagonalCurvature Gaussian GaussianPool LazyLowRank LowRank "
    "OneShotBasis OrthogonalSubspace Perturbation Rademacher",
    "probing": "InPlace Individual Prober Streamed",
    "estimators": "SPSA Bayesian Central Estimator Greedy Guiding NoProbes NormalizedOneSided OneSided PerExampleSPSA",
    "updates": "SGD Adam Backprop LayerProjection Update",
}
_RENAMED = {
    "Curvature": "CurvatureSampling",
    "Everything": "AllBlocks",
    "Individual": "PerExampleProber",
    "PerParameter": "ParameterSampling",
    "PublishedCurvature": "PublishedSampling",
    "Uniform": "UniformSampling",
}

MOVED: Mapping[str, str] = {
    **{
        f"zolit.{stage}.{name}": f"zolit.optim.{_RENAMED.get(name, name)}"
        for stage, names in _STAGES.items()
        for name in names.split()
    },
    "zolit.optimizer.ZerothOrder": "zolit.optim.ZerothOrder",
    "zolit.tuning.Full": "zolit.models.Full",
    "zolit.tuning.LoRA": "zolit.models.LoRA",
    "zolit.tuning.Prefix": "zolit.models.PrefixTuning",
    "zolit.tasks.Writing": "zolit.tasks.Generation",
    "zolit.tasks.PromptedData": "zolit.data.PromptedData",
    "zolit.module.ZerothOrderModule": "zolit.training.ZerothOrderModule",
    "zolit.split.SplitStrategy": "zolit.training.split.SplitStrategy",
    "zolit.strategies.ReplicatedStrategy": "zolit.training.replicated.ReplicatedStrategy",
}
"""New class path of each old one."""


def find_moved(text: str) -> tuple[str, str] | None:
    """Finds the first class path of an earlier version in a text.

    A path may name the module within the package, as in zolit.selection.sampling.Uniform.

    Returns:
        The path as it is in the text, and the new path. None if the text has no such path.
    """
    for path in re.findall(r"\bzolit(?:\.\w+)+", text):
        parts = path.split(".")
        new = MOVED.get(path) or MOVED.get(".".join((*parts[:2], parts[-1])))
        if new is not None:
            return path, new
    return None


def moved_sentence(old: str, new: str, where: str) -> str:
    """Returns the sentence that names the new class path, and the file that has the old one."""
    return f"class_path {old} is now {new}; change it in {where}"
