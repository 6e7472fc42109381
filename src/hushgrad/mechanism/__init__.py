"""What one step does to the data and what it costs, as frozen values."""

from hushgrad.mechanism.mechanism import DPSGD

__all__ = ["DPSGD"]
