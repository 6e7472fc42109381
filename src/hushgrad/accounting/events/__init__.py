"""Events: what was released, as data that accountants interpret."""
