"""Accounting by a contour integral through the saddle point: the default."""
