"""The laboratory as a fixture: one for a test, and one for a module whose tests look at the same event."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.e2e.lab import Lab, nothing_left


@pytest.fixture
def lab() -> Iterator[Lab]:
    with nothing_left(), Lab() as made:
        yield made


@pytest.fixture(scope="module")
def shared_lab() -> Iterator[Lab]:
    with nothing_left(), Lab() as made:
        yield made
