"""The loops of a solve; ``select`` alone decides which of them runs."""
