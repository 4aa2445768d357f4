"""What is asked, checked and packed: one initial value problem, or one for each sample."""
