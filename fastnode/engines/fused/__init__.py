"""Whole solves in one native call, the vector field included (csrc/mlp)."""
