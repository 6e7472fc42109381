"""What is measured of noise and sampling, and the statistics that judge it."""
