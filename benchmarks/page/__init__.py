"""`python -m benchmarks.page`: a benchmark for the machine at hand, in ten minutes, as one HTML page."""
