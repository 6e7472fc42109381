"""Verification of a training that hushgrad drives."""
