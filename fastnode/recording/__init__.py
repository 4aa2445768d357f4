"""From accepted steps to the Solution that is returned."""
