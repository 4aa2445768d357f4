"""How gradients of a solve are made; ``select`` says what each adjoint can do."""
