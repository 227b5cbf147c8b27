"""The LightningModule, its objective and its strategies."""

from zolit.training.module import ZerothOrderModule

__all__ = ["ZerothOrderModule"]
