"""The certificate of the demo's hub. It is published with its key and protects nothing: for loopback, and to be pinned.

Made once, so that the demo needs neither a certificate authority nor a program that makes keys.
"""

FINGERPRINT = "sha256:ed29b15c558bfdcf02fbd0b870c9e55d2256788cacace26d94e28c1a911e96a3"

CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBoDCCAUegAwIBAgIUPzp80QC6f//WPJYjX3hAMqzz/W8wCgYIKoZIzj0EAwIw
FjEUMBIGA1UEAwwLaHViLmV4YW1wbGUwIBcNMjYxMTIzMTUzNzQxWhgPMjEyNjEw
MzAxNTM3NDFaMBYxFDASBgNVBAMMC2h1Yi5leGFtcGxlMFkwEwYHKoZIzj0CAQYI
KoZIzj0DAQcDQgAECvmJs7FmUoUrcv3ancRxPZ0x+kPOVgXfF9yr7NJxr1s3TDsn
eLbMXlS7VS1ZP5a6zzj4Nf0nMsRZw4v13SyqMaNxMG8wHQYDVR0OBBYEFMyxg+rg
1eZ5e70Y6UTIlEF/jiu9MB8GA1UdIwQYMBaAFMyxg+rg1eZ5e70Y6UTIlEF/jiu9
MA8GA1UdEwEB/wQFMAMBAf8wHAYDVR0RBBUwE4ILaHViLmV4YW1wbGWHBH8AAAEw
CgYIKoZIzj0EAwIDRwAwRAIgEI9WAe8r3kNA4JpN2hymwbecaOYP6G8w2dHVayo5
odsCIAXscRxYKsyRheUT4/WNPzEGiquVeEd5ejz0SRqV2vyc
-----END CERTIFICATE-----
"""

KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgZBO5mSLYCSGfm3hX
X0M7Ljd/K1vPvU06OGh5SbHg0C2hRANCAAQK+YmzsWZShSty/dqdxHE9nTH6Q85W
Bd8X3Kvs0nGvWzdMOyd4tsxeVLtVLVk/lrrPOPg1/ScyxFnDi/XdLKox
-----END PRIVATE KEY-----
"""
