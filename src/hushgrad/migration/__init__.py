"""Coming from another library: what it wrote is read, and what was written for it is rewritten."""
