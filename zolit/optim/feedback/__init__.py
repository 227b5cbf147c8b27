"""Carries the gradient at the last hidden state down to the layers without a backward pass through them."""
