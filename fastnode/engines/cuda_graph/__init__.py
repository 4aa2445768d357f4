"""The whole adaptive solve as one CUDA graph."""
