"""When to ask, and when we are done."""
