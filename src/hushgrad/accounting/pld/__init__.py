"""Accounting by privacy loss distributions."""
