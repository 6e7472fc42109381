"""Always on, below the session: what must hold for an update to be released."""
