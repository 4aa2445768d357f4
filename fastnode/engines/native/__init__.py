"""The loops in C++ that call a Python vector field (csrc/driver)."""
