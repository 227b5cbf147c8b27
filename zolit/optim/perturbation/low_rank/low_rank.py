"""Low-rank directions with two normal factors."""

from __future__ import annotations

from zolit.optim.perturbation.low_rank.pooled import PooledFactors


class LowRank(PooledFactors):
    """Draws U = r^(-1/2) Σⱼ aⱼbⱼᵀ for a matrix of shape (n, d), and a for a vector, with entries from N(0, 1).

    E[vec(U) vec(U)ᵀ] = I, so estimates along U are unbiased, like estimates along dense directions. A direction takes
    r(n + d) numbers for n·d weights. EGGROLL (arXiv 2511.16652) uses the same law for evolution strategies.

    Args:
        rank: r. The higher the rank, the lower the fourth moments of the entries of U, and the closer U is to a dense
            direction.

    Raises:
        UserError: If the rank is not positive.
    """
