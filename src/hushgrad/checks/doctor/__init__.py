"""What `hushgrad doctor` does: reads a model, runs it once on a batch, and says how it would be trained privately."""
