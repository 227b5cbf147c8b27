"""Language models: loading, choice of the trained weights, and evaluation of batches."""

from zolit.models.tuning import Full, LoRA, PrefixTuning, Tuning

__all__ = ["Full", "LoRA", "PrefixTuning", "Tuning"]
