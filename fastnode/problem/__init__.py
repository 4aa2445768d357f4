"""Initial value problems, checked and packed: one, or one for each sample."""
