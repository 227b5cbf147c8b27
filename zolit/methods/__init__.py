"""One paper a file: each method is a choice per room."""

from zolit.methods.curvzo import CurvZO
from zolit.methods.mezo import MeZO

__all__ = ["CurvZO", "MeZO"]
