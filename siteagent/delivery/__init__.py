"""From accepted message to mailbox."""
