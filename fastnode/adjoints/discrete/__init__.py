"""Exact gradients of the discrete solve, by recomputing its steps."""
