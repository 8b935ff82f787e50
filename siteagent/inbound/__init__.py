"""Our server side, on aiosmtpd: who may come, what they say, what we keep."""
