"""Strategies: how the noise of one step is correlated with that of others, as lower-triangular Toeplitz matrices."""
