"""What can be known of a vector field before it is solved."""
