"""Stage 4 of a step: computes the coefficients of the directions from a few losses."""
