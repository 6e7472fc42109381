"""Step time and memory of private training against the ordinary step and against Opacus: `python -m benchmarks`."""
