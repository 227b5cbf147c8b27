"""The third room: how are the losses at θ + Σ cᵢuᵢ obtained?"""

from typing import Literal, get_args

from zolit.closure import Closure
from zolit.errors import require_one_of
from zolit.probing.base import Prober
from zolit.probing.in_place import InPlace
from zolit.probing.individual import Individual
from zolit.probing.streamed import Streamed

__all__ = ["Closure", "InPlace", "Individual", "Prober", "Probing", "Streamed", "prober_for"]

Probing = Literal["streamed", "joint", "in_place"]
"""How losses at perturbed weights are obtained:

- ``streamed``: modules compute with perturbed weights as they go; the weights themselves are never written.
- ``joint``: the same, both probes of a pair in one forward of twice the batch: faster where one batch does not keep the
  device busy, and takes the memory of twice the activations.
- ``in_place``: the weights are moved and moved back, in 16 bits by a copy.
"""


def prober_for(probing: Probing) -> Prober:
    """Returns a new prober.

    Raises:
        UserError: If there is none of that name.
    """
    require_one_of("probing", probing, get_args(Probing))
    return InPlace() if probing == "in_place" else Streamed(joint=probing == "joint")
