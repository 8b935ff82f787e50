"""Live checks: what is looked at, why it matters, what to do. Judges and reports; mends nothing."""
