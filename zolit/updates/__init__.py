"""What is done with the gradient estimate?"""

from zolit.updates.adam import Adam
from zolit.updates.backprop import Backprop
from zolit.updates.base import Update
from zolit.updates.projection import LayerProjection
from zolit.updates.sgd import SGD

__all__ = ["SGD", "Adam", "Backprop", "LayerProjection", "Update"]
