"""Lightning callbacks that watch a zeroth-order run: its sampler's beliefs and budget, and its memory.

They read the ``StepReport`` that ``training_step`` returns as ``outputs["zo"]``; nothing of the optimizer is touched.
Scalars reach every logger, histograms, figures and texts TensorBoard; without a logger they run and write nothing.
"""

from zolit_callbacks.budget import BudgetLogger
from zolit_callbacks.checkpoint import StepCheckpoint
from zolit_callbacks.curvature import CurvatureTracker
from zolit_callbacks.memory import MemoryProfiler
from zolit_callbacks.summary import RunSummary
from zolit_callbacks.support import SupportMonitor

__all__ = [
    "BudgetLogger",
    "CurvatureTracker",
    "MemoryProfiler",
    "RunSummary",
    "StepCheckpoint",
    "SupportMonitor",
]
