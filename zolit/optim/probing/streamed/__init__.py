"""Probes without writing the weights: modules compute with perturbed views while they run."""
