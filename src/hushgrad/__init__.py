"""hushgrad."""
