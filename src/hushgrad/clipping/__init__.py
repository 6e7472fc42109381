"""Clip rules: from norms to factors, and the sensitivity that follows."""
