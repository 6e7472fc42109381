"""Where the examples of a batch lie, followed through the operators of a forward."""
