"""Which sources a host gets."""

from __future__ import annotations

from pathlib import Path

import pytest
from siteagent.config.sections import Backend
from siteagent.link.backend import Source, chosen, standard_sources


def sources(backend: Backend, notes: list[str]) -> list[str]:
    made: list[Source] = standard_sources(
        backend, poll_seconds=15, hook_directory=Path("/nonexistent/hints"), note=notes.append
    )
    return [source.name for source in made]


@pytest.mark.parametrize(
    ("platform", "backend"),
    [("linux", Backend.NETLINK), ("win32", Backend.WINDOWS), ("darwin", Backend.POLL), ("freebsd14", Backend.POLL)],
)
def test_auto_is_what_the_system_has(platform: str, backend: Backend) -> None:
    assert chosen(Backend.AUTO, platform) is backend


def test_a_backend_that_is_named_is_taken_at_its_word() -> None:
    assert chosen(Backend.POLL, "linux") is Backend.POLL


@pytest.mark.parametrize("backend", [Backend.NETLINK, Backend.POLL])
def test_the_tick_and_the_hook_directory_are_always_there(backend: Backend) -> None:
    assert {"poll", "hook"} <= set(sources(backend, []))


def test_polling_asks_the_system_for_nothing() -> None:
    assert sources(Backend.POLL, []) == ["poll", "hook"]


def test_only_hints_that_somebody_meant_are_nudges() -> None:
    made = standard_sources(Backend.NETLINK, poll_seconds=15, hook_directory=Path("/nonexistent"), note=print)
    assert [source.name for source in made if source.nudges] == ["hook"]
