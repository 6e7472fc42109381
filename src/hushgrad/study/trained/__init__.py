"""A model that a run has trained: loaded with its preprocessing, used on new rows, exported with its guarantee."""
