"""One paper a file: each method is a choice per room."""

from zolit.methods.about import About
from zolit.methods.curvzo import CurvZO
from zolit.methods.mezo import MeZO
from zolit.methods.per_example import PerExample

__all__ = ["CurvZO", "MeZO", "PerExample"]


def abouts() -> dict[str, About]:
    """Returns what there is to say of every method, by name."""
    return {name: globals()[name].about for name in __all__}
