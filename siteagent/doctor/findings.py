"""What a check is, and what it finds. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """`warn`: allowed, and probably not meant, or not to be told from here. Only `fail` makes `doctor` fail."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `name` as ``maildir alice``; `fix` "" where nothing is to be done."""

    name: str
    status: Status
    found: str
    fix: str = ""

    def document(self, why: str) -> dict[str, str]:
        """As the contract's JSON has it."""
        return {"name": self.name, "status": self.status.value, "found": self.found, "why": why, "fix": self.fix}


def ok(name: str, found: str) -> Finding:
    return Finding(name, Status.OK, found)


def warn(name: str, found: str, fix: str) -> Finding:
    return Finding(name, Status.WARN, found, fix)


def fail(name: str, found: str, fix: str) -> Finding:
    return Finding(name, Status.FAIL, found, fix)
