"""The loops in pure PyTorch, which define the right result."""
