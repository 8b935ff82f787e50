"""The provider half: holds mail for sites and releases it on demand. Knows nothing of the agent."""
