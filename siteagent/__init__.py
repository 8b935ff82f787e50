"""siteagent: asks the mail provider for what it holds when the line comes up, receives it, and files it into Maildirs.

The house: ``docs/architecture.md``. What a user meets: ``README.md`` and ``docs/configuration.md``.
"""

__version__ = "0.1.0"
