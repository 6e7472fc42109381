"""Rows of huge tables that are chosen privately in each step, so that noise and update touch these alone."""
