"""Stage 2 of a step: draws the random directions."""
