"""The catalogue of known mistakes: what a wrong program's numbers look like."""
