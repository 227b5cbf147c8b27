"""Lightning callbacks that monitor a zeroth-order run: scores and budget of the sampling, memory, health, checkpoints.

They read the ``StepReport`` that ``training_step`` returns as ``outputs["zo"]``, and never change the optimizer.
Scalars go to each logger; histograms, figures and texts go to TensorBoard. Without a logger they write nothing.
"""

from zolit_callbacks.budget import BudgetLogger
from zolit_callbacks.checkpoint import StepCheckpoint
from zolit_callbacks.curvature import CurvatureTracker
from zolit_callbacks.health import HealthMonitor
from zolit_callbacks.memory import MemoryProfiler
from zolit_callbacks.summary import RunSummary
from zolit_callbacks.support import SupportMonitor

__all__ = [
    "BudgetLogger",
    "CurvatureTracker",
    "HealthMonitor",
    "MemoryProfiler",
    "RunSummary",
    "StepCheckpoint",
    "SupportMonitor",
]
