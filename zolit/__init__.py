"""zolit: fine-tune language models with forward passes alone."""

from zolit.errors import NonFiniteLossError, UserError
from zolit.methods import CurvZO, MeZO, PerExample
from zolit.optimizer import ZerothOrder
from zolit.report import SelectionReport, StepReport

__all__ = [
    "CurvZO",
    "MeZO",
    "NonFiniteLossError",
    "PerExample",
    "SelectionReport",
    "StepReport",
    "UserError",
    "ZerothOrder",
]
