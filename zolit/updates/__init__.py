"""What is done with the gradient estimate?"""

from zolit.updates.base import Update
from zolit.updates.sgd import SGD

__all__ = ["SGD", "Update"]
