"""Measures whether what runs is what is claimed: contributions, noise, sampling, ledger and replay."""
