"""Sweeps: many runs over noise, clipping, batch size, learning rate and seeds, their table and their pictures."""
