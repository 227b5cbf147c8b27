"""One step of zeroth-order optimization, in five stages. Imports torch, numpy and the standard library only."""

from zolit.optim.answers import Answers
from zolit.optim.base_point import BasePoint, Closure
from zolit.optim.blocks import Block, BlockSample, CoordinateMask, Weight
from zolit.optim.collectives import Collectives
from zolit.optim.estimators.base import Estimate, Estimator, Evaluate
from zolit.optim.estimators.bayesian import Bayesian
from zolit.optim.estimators.central import Central
from zolit.optim.estimators.guiding import Greedy, Guiding
from zolit.optim.estimators.no_probes import NoProbes
from zolit.optim.estimators.normalized_one_sided import NormalizedOneSided
from zolit.optim.estimators.one_sided import OneSided
from zolit.optim.estimators.per_example import PerExampleSPSA
from zolit.optim.estimators.spsa import SPSA
from zolit.optim.optimizer import ZerothOrder
from zolit.optim.perturbation.base import Perturbation
from zolit.optim.perturbation.diagonal_curvature import DiagonalCurvature
from zolit.optim.perturbation.directions import Directions
from zolit.optim.perturbation.factored import FactoredPerturbation, Factors
from zolit.optim.perturbation.gaussian import Gaussian
from zolit.optim.perturbation.gaussian_pool import GaussianPool
from zolit.optim.perturbation.low_rank.activation_guided import ActivationGuided
from zolit.optim.perturbation.low_rank.activation_subspace import ActivationSubspace
from zolit.optim.perturbation.low_rank.lazy_low_rank import LazyLowRank
from zolit.optim.perturbation.low_rank.low_rank import LowRank
from zolit.optim.perturbation.low_rank.orthogonal_subspace import OrthogonalSubspace
from zolit.optim.perturbation.one_shot_basis import OneShotBasis
from zolit.optim.perturbation.rademacher import Rademacher
from zolit.optim.probing.base import Prober
from zolit.optim.probing.in_place import InPlace
from zolit.optim.probing.per_example.prober import PerExampleProber
from zolit.optim.probing.streamed.prober import Streamed
from zolit.optim.randomness import Generators, Step, fold_in, key_of
from zolit.optim.rate import LearningRate
from zolit.optim.rate_search import Rate, choose_rate
from zolit.optim.report import SelectionReport, StepReport
from zolit.optim.selection.all_blocks import AllBlocks
from zolit.optim.selection.base import Selection
from zolit.optim.selection.curvature.budget import AdaptiveBudget, Budget, FixedBudget
from zolit.optim.selection.curvature.parameter_sampling import ParameterSampling
from zolit.optim.selection.curvature.published_sampling import PublishedSampling
from zolit.optim.selection.curvature.sampling import BlockSampling, CurvatureSampling, UniformSampling
from zolit.optim.selection.curvature.scores import BlockScores, ScoreRule
from zolit.optim.selection.fixed_mask import FixedMask
from zolit.optim.selection.knapsack import Knapsack
from zolit.optim.selection.one_layer import OneLayer
from zolit.optim.selection.sensitive_weights import SensitiveWeights
from zolit.optim.selection.small_weights import SmallWeights
from zolit.optim.stage import Stage
from zolit.optim.updates.adam import Adam
from zolit.optim.updates.answer_regression import AnswerRegression
from zolit.optim.updates.backprop import Backprop
from zolit.optim.updates.base import Update
from zolit.optim.updates.factored import Factored
from zolit.optim.updates.feedback import Feedback
from zolit.optim.updates.fused import FusedBackprop
from zolit.optim.updates.gradient import Gradient
from zolit.optim.updates.layer_projection import LayerProjection
from zolit.optim.updates.rounding import Rounding
from zolit.optim.updates.rule import Rule
from zolit.optim.updates.rules import RuleName, rule_of
from zolit.optim.updates.sgd import SGD

__all__ = [
    "SGD",
    "SPSA",
    "ActivationGuided",
    "ActivationSubspace",
    "Adam",
    "AdaptiveBudget",
    "AllBlocks",
    "AnswerRegression",
    "Answers",
    "Backprop",
    "BasePoint",
    "Bayesian",
    "Block",
    "BlockSample",
    "BlockSampling",
    "BlockScores",
    "Budget",
    "Central",
    "Closure",
    "Collectives",
    "CoordinateMask",
    "CurvatureSampling",
    "DiagonalCurvature",
    "Directions",
    "Estimate",
    "Estimator",
    "Evaluate",
    "Factored",
    "FactoredPerturbation",
    "Factors",
    "Feedback",
    "FixedBudget",
    "FixedMask",
    "FusedBackprop",
    "Gaussian",
    "GaussianPool",
    "Generators",
    "Gradient",
    "Greedy",
    "Guiding",
    "InPlace",
    "Knapsack",
    "LayerProjection",
    "LazyLowRank",
    "LearningRate",
    "LowRank",
    "NoProbes",
    "NormalizedOneSided",
    "OneLayer",
    "OneShotBasis",
    "OneSided",
    "OrthogonalSubspace",
    "ParameterSampling",
    "PerExampleProber",
    "PerExampleSPSA",
    "Perturbation",
    "Prober",
    "PublishedSampling",
    "Rademacher",
    "Rate",
    "Rounding",
    "Rule",
    "RuleName",
    "ScoreRule",
    "Selection",
    "SelectionReport",
    "SensitiveWeights",
    "SmallWeights",
    "Stage",
    "Step",
    "StepReport",
    "Streamed",
    "UniformSampling",
    "Update",
    "Weight",
    "ZerothOrder",
    "choose_rate",
    "fold_in",
    "key_of",
    "rule_of",
]
