"""What the listener answers: every fixed reply, in one place.

Nothing here names a path, a setting or an error of ours. 4yz wherever the cause is on our side; 5yz is policy, or a
peer that does not speak SMTP.
"""

from __future__ import annotations

from siteagent.wire.reply import Reply

# On the way in.
STRANGER_BUSY = Reply(421, "4.3.2", "too many connections, try again later")
WAITED_TOO_LONG = Reply(421, "4.3.2", "busy, try again later")
EARLY_TALKER = Reply(554, "5.5.1", "wait for the greeting")
PROXY_HEADER = Reply(421, "4.7.1", "no PROXY header")

# On the way out.
BYE = Reply(221, "2.0.0", "bye")
CLOSING = Reply(421, "4.3.2", "closing down, try again later")
SILENT = Reply(421, "4.4.2", "nothing came for too long")
TOO_SLOW = Reply(421, "4.4.2", "too slow")
TOO_MUCH_JUNK = Reply(421, "4.7.0", "too many commands that do nothing")
TOO_MANY_ERRORS = Reply(421, "4.7.0", "too many errors")
NOT_SMTP = Reply(421, "4.7.0", "this is SMTP")

# Ours.
OUR_FAULT = Reply(451, "4.3.0", "something went wrong here, try again later")
NOT_KEPT = Reply(451, "4.3.0", "could not be kept here, try again later")
NO_ROOM = Reply(452, "4.3.1", "no room here, try again later")

# Commands.
OK = Reply(250, "2.0.0", "ok")
UNKNOWN = Reply(500, "5.5.2", "unknown command")
LINE_TOO_LONG = Reply(500, "5.5.2", "line too long")
NO_PARAMETERS = Reply(501, "5.5.4", "takes no parameters")
NAME_MISSING = Reply(501, "5.5.4", "a host name is missing")
NAME_MALFORMED = Reply(501, "5.5.4", "host name malformed")
HELLO_FIRST = Reply(503, "5.5.1", "say EHLO first")
NESTED_MAIL = Reply(503, "5.5.1", "one message at a time")
MAIL_FIRST = Reply(503, "5.5.1", "MAIL comes first")
RCPT_FIRST = Reply(503, "5.5.1", "RCPT comes first")
NOBODY_LEFT = Reply(554, "5.5.1", "no valid recipients")
BDAT_GOES_ON = Reply(503, "5.5.1", "BDAT goes on until LAST")
CANNOT_VERIFY = Reply(252, "2.5.0", "send mail and see")
HELP = Reply(214, "2.0.0", "RFC 5321")
NOT_OFFERED = Reply(502, "5.5.1", "not offered here")
TLS_FIRST = Reply(530, "5.7.0", "say STARTTLS first")
TLS_READY = Reply(220, "2.0.0", "go ahead with TLS")
TLS_UNAVAILABLE = Reply(454, "4.7.0", "TLS is not available now")
TLS_ALREADY = Reply(503, "5.5.1", "TLS is on already")
TLS_IN_MAIL = Reply(503, "5.5.1", "not inside a message")
TLS_AND_MORE = Reply(503, "5.5.1", "nothing may follow STARTTLS before the answer")

# MAIL and RCPT.
SENDER_OK = Reply(250, "2.1.0", "sender ok")
RECIPIENT_OK = Reply(250, "2.1.5", "recipient ok")
MAIL_SYNTAX = Reply(501, "5.5.4", "it is MAIL FROM:<address>")
RCPT_SYNTAX = Reply(501, "5.5.4", "it is RCPT TO:<address>")
ADDRESS_SYNTAX = Reply(501, "5.1.3", "address malformed")
ADDRESS_CONTROL = Reply(501, "5.1.3", "control characters in an address")
ADDRESS_ENCODING = Reply(553, "5.6.7", "address is not UTF-8")
ADDRESS_LENGTH = Reply(501, "5.1.3", "address too long")
NEEDS_SMTPUTF8 = Reply(553, "5.6.7", "SMTPUTF8 is needed for this address")
PARAMETER_SYNTAX = Reply(501, "5.5.4", "parameter malformed")
PARAMETER_UNKNOWN = Reply(555, "5.5.4", "parameter not offered")
BODY_UNKNOWN = Reply(501, "5.5.4", "BODY is 7BIT or 8BITMIME")
TOO_BIG = Reply(552, "5.3.4", "message too big")
TOO_BIG_NOW = Reply(452, "4.3.4", "too big for this line now, try again later")
TOO_MANY_RECIPIENTS = Reply(452, "4.5.3", "too many recipients, send the rest in another message")

# Content.
CHUNK_TAKEN = Reply(250, "2.0.0", "chunk taken")
GO_AHEAD = Reply(354, "", "end with CRLF.CRLF")
BARE_NEWLINE = Reply(550, "5.5.2", "line ends must be CRLF")
LOOP = Reply(554, "5.4.6", "too many Received lines, this is a loop")
LINE_OF_CONTENT = Reply(554, "5.6.0", "a line of the message is far too long")
