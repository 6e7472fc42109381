"""The join of a mechanism to a model and an optimizer."""
