"""Functions on the modules of a model: find layers, watch inputs, attach adapters."""
