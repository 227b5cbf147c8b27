"""How are the losses at perturbed weights obtained?"""

from zolit.probing.base import Closure, Prober
from zolit.probing.in_place import InPlace

__all__ = ["Closure", "InPlace", "Prober"]
