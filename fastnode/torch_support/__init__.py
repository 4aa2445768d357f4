"""What PyTorch makes necessary: compile guards, partial gradients, warnings, recomputation."""
