"""16-bit precision that leaves the types of a loaded model as they are."""

from __future__ import annotations

from lightning.pytorch.plugins.precision import HalfPrecision
from torch.nn import Module
from typing_extensions import override


class LoadedPrecision(HalfPrecision):
    """``bf16-true`` and ``16-true`` without a cast of the whole module.

    The model is loaded with 16-bit weights already. What transformers, peft or a method keeps in float32 then has a
    reason: rotary frequencies, the weights of LoRA, the coefficients of ZO-Act. Lightning would cast these too.
    """

    @override
    def convert_module(self, module: Module) -> Module:
        """Returns the module unchanged; see ``Precision.convert_module``. Called once, after the model is loaded."""
        return module
