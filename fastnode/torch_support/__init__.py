"""Helpers around PyTorch: torch.compile guards, partial gradients, warnings, recomputation."""
