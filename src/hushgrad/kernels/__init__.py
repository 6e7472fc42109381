"""What runs on a GPU: Triton kernels for norms and noise, and noise in torch where Triton is missing."""
