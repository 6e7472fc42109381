"""Scripts written for Opacus, rewritten: changes in the text, everything else as it was."""
