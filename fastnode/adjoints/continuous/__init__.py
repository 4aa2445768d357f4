"""The continuous adjoint: gradients by a second solve, backwards in time."""
