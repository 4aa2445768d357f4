"""Ops: one fused kernel each, with its plain PyTorch reference beside it."""
