"""The provider half: holds mail for sites and releases it on demand."""
