"""Stage 1 of a step: chooses the blocks to perturb."""
