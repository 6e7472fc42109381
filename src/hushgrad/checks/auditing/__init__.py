"""Audits: lower bounds on ε from what a run releases, to stand beside the ε that is claimed."""
