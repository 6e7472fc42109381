"""Private training in the frameworks where people train: one file for each, imported on use, nothing patched."""
