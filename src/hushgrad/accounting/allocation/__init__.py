"""Random allocation: the distribution of a pass's likelihood ratio, from both sides."""
