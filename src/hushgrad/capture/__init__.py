"""Which parameter was used, on what, for which example: seen at the operators, not at the modules."""
