"""Events: sign changes of functions of time and state, and their search during a solve."""
