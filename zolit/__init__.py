"""zolit: fine-tune language models with forward passes alone."""

from zolit.errors import NonFiniteLossError, UserError
from zolit.methods import (
    AGZO,
    BSZO,
    FZOO,
    LOZO,
    CurvZO,
    DiZO,
    DominantLayer,
    FirstOrder,
    HiZFO,
    HiZOO,
    MeZO,
    MeZOGreedy,
    MeZOGV,
    PerExample,
    SensZOQ,
    SparseMeZO,
    SubZero,
    ZOAct,
)
from zolit.optimizer import ZerothOrder
from zolit.report import SelectionReport, StepReport

__all__ = [
    "AGZO",
    "BSZO",
    "FZOO",
    "LOZO",
    "CurvZO",
    "DiZO",
    "DominantLayer",
    "FirstOrder",
    "HiZFO",
    "HiZOO",
    "MeZO",
    "MeZOGV",
    "MeZOGreedy",
    "NonFiniteLossError",
    "PerExample",
    "SelectionReport",
    "SensZOQ",
    "SparseMeZO",
    "StepReport",
    "SubZero",
    "UserError",
    "ZOAct",
    "ZerothOrder",
]
