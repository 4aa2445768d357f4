"""Where torchdiffeq's programs find more than its functions; see ``odeint``."""
