"""Stage 5 of a step: moves the weights by the gradient estimate."""
