"""Does what runs agree with what is claimed? Checks by running, where reading cannot tell."""
