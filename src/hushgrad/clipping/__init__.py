"""Clip rules: what a rule is, the kinds, and a rule bound to the parameters of a model."""
