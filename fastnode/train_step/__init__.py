"""A whole training step in one native call."""
