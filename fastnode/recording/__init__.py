"""From accepted steps to the Solution that the caller gets."""
