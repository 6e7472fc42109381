"""Checkpoints: weights, optimizer, schedules and the receipt of what they cost, in one file without pickle."""
