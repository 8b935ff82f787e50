"""The only writers of our own state."""
