"""Laws of low-rank directions: products of two thin matrices."""
