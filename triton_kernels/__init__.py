"""Triton kernels of fastnode, one op a file; installed as ``fastnode.triton_kernels``."""
