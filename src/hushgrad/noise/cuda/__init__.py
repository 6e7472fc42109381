"""Noise on a GPU: when it is drawn there, its cipher and definition, the kernel in Triton, and its known answers."""
