"""One paper a file: each method is a choice per room."""

from zolit.methods.curvzo import CurvZO
from zolit.methods.mezo import MeZO
from zolit.methods.per_example import PerExample

__all__ = ["CurvZO", "MeZO", "PerExample"]
