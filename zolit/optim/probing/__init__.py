"""Stage 3 of a step: computes the losses at perturbed weights."""
