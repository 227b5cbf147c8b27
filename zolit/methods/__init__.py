"""One paper a file: each method is a choice per room."""

from zolit.methods.about import About
from zolit.methods.agzo import AGZO
from zolit.methods.bszo import BSZO
from zolit.methods.curvzo import CurvZO
from zolit.methods.dizo import DiZO
from zolit.methods.dominant_layer import DominantLayer
from zolit.methods.first_order import FirstOrder
from zolit.methods.fzoo import FZOO
from zolit.methods.hi_zfo import HiZFO
from zolit.methods.hizoo import HiZOO
from zolit.methods.lozo import LOZO
from zolit.methods.mezo import MeZO
from zolit.methods.mezo_greedy import MeZOGreedy
from zolit.methods.mezo_gv import MeZOGV
from zolit.methods.per_example import PerExample
from zolit.methods.sens_zoq import SensZOQ
from zolit.methods.sparse_mezo import SparseMeZO
from zolit.methods.sub_zero import SubZero
from zolit.methods.zo_act import ZOAct

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
    "PerExample",
    "SensZOQ",
    "SparseMeZO",
    "SubZero",
    "ZOAct",
]


def abouts() -> dict[str, About]:
    """Returns what there is to say of every method, by name."""
    return {name: globals()[name].about for name in __all__}
