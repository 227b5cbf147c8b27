"""Probes with a separate direction for each example of the batch, in one forward."""
