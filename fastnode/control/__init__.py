"""Step-size control: controllers, error norms, stiffness, options of methods."""
