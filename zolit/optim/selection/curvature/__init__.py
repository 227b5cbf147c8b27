"""Samples blocks or single parameters by curvature scores, as CurvZO does (arXiv 2603.21725)."""
