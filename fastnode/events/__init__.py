"""Sign changes of functions of time and state: how they are found and watched."""
