"""zolit: fine-tune language models with forward passes alone."""

from zolit.errors import NonFiniteLossError, UserError
from zolit.methods import CurvZO, MeZO
from zolit.optimizer import ZerothOrder
from zolit.report import SelectionReport, StepReport

__all__ = [
    "CurvZO",
    "MeZO",
    "NonFiniteLossError",
    "SelectionReport",
    "StepReport",
    "UserError",
    "ZerothOrder",
]
