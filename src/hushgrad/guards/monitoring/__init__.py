"""Monitors: the noise and the sensitivity of the steps that run."""
