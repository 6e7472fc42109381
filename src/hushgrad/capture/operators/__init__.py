"""The rules: for each operator that takes a parameter, its forward, its input gradient and what it records."""
