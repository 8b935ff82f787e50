"""Our client side, on aiosmtplib: connect, introduce ourselves, protect the line, log in, ask.

``sockets`` dials from the line that came up, ``tls`` verifies who answers, ``protocol`` reads replies strictly,
``connection`` puts a session together of them, ``login`` proves who we are, ``ask`` does ETRN, ``trial`` hands over a
test message. The room for ATRN is ``turn``: it takes a `connection.Connection` after `login.log_in` and turns its
transport round.
"""
