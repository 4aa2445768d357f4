"""The loops in pure PyTorch: the definition of right."""
