"""Engines: the loops that carry a state through time. They know no adjoint and no caller."""
