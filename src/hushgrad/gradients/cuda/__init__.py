"""Norms on a GPU: when kernels take them, the kernels in Triton, and their known answers."""
