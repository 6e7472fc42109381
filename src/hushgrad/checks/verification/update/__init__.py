"""Verification of somebody's own update."""
