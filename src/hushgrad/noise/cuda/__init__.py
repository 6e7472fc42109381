"""Noise on a GPU: the choice to draw it there, cipher and definition, the Triton kernel, and known answers."""
