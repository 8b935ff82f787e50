"""SMTP itself, without a socket: nothing here waits, opens or asks the clock."""
