"""fastnode: custom kernels for Neural ODEs in PyTorch."""

__version__ = "0.1.0"
