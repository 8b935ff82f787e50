"""The errors an operator can meet: what was being done, why it could not be, what to do about it.

One tree. The command line prints ``str(error)`` and ends with ``error.exit_code``; the daemon logs it and goes on
where ``temporary`` says that trying again makes sense. Exit codes are those of sysexits.h, as mail programs use them.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    """How a command ends. A code that is not listed here must be treated as failure."""

    DONE = 0
    BUG = 1
    USAGE = 64
    UNAVAILABLE = 69
    CANNOT_CREATE = 73
    IO = 74
    TEMPORARY = 75
    PERMISSION = 77
    CONFIGURATION = 78


# Several providers, one exit code: the first of these that any of them earned.
_WORST_FIRST = (
    ExitCode.PERMISSION,
    ExitCode.CONFIGURATION,
    ExitCode.IO,
    ExitCode.UNAVAILABLE,
    ExitCode.TEMPORARY,
    ExitCode.DONE,
)


def worst(codes: Iterable[ExitCode]) -> ExitCode:
    """The code that stands for all of `codes`; DONE for none. A code outside the order (a bug) wins over all."""
    found = set(codes)
    unranked = found.difference(_WORST_FIRST)
    if unranked:
        return min(unranked)
    return next((code for code in _WORST_FIRST if code in found), ExitCode.DONE)


class SiteAgentError(Exception):
    """Base of all errors that an operator meets.

    `what` names the operation and its object as the operator would, `why` the cause (quoting the peer where it
    spoke), `fix` an order or the command that tells more. All lower case, no full stop, one line each.
    """

    exit_code: ExitCode = ExitCode.BUG
    temporary: bool = False

    def __init__(self, what: str, why: str, *, fix: str | None = None) -> None:
        super().__init__(what, why)
        self.what = what
        self.why = why
        self.fix = fix

    def __str__(self) -> str:
        line = f"{self.what}: {self.why}" if self.why else self.what
        return f"{line}\n  fix: {self.fix}" if self.fix else line


class UsageError(SiteAgentError):
    """The command line asks for something that does not exist or does not go together."""

    exit_code = ExitCode.USAGE


class ProviderUnavailable(SiteAgentError):
    """The provider refuses us, or cannot do what is asked of it; asking again unchanged will not help."""

    exit_code = ExitCode.UNAVAILABLE


class CannotCreate(SiteAgentError):
    """Something that must exist could not be made: a directory, a lock, a listening port."""

    exit_code = ExitCode.CANNOT_CREATE


class StorageError(SiteAgentError):
    """Reading or writing our own state went wrong."""

    exit_code = ExitCode.IO


class TemporaryError(SiteAgentError):
    """It did not work now, and trying again later is right."""

    exit_code = ExitCode.TEMPORARY
    temporary = True


class PermissionProblem(SiteAgentError):
    """The operating system, or a file's mode, does not let us."""

    exit_code = ExitCode.PERMISSION


class ConfigurationError(SiteAgentError):
    """What the operator wrote cannot be used. `config.load` raises its subclass that lists every problem at once."""

    exit_code = ExitCode.CONFIGURATION
