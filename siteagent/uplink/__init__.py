"""Our client side, on aiosmtplib: connect, ask."""
