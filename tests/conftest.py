"""What holds for every test: the long forms, what a test needs of the machine, and how hypothesis searches.

A test never skips itself for a missing tool: it is marked (`netns`, `postfix`, `tools`, `slow`) and skipped here, so
that the reasons are few, the same everywhere, and say what to do.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache

import pytest
from hypothesis import HealthCheck, settings
from tests.check import unpacked

LONG_FORM = "long form; run with --long"

# Coverage and a busy machine make single examples slow without meaning anything: no deadline, and no complaint of it.
_CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile("short", _CALM, max_examples=100)
settings.register_profile("long", _CALM, max_examples=2_000)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the slow forms too, and let hypothesis search longer")


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("long" if config.getoption("--long") else "short")


@pytest.fixture
def is_long(request: pytest.FixtureRequest) -> bool:
    """Whether the long forms are wanted, for a test that has both."""
    return bool(request.config.getoption("--long"))


@cache
def _no_namespaces() -> str | None:
    """Why network namespaces cannot be made here; None where they can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces need root"
    if missing := [tool for tool in ("ip", "tc", "iptables") if _which(tool) is None]:
        return f"{' and '.join(missing)} missing: python3 tests/check.py --system-packages"
    name = f"sa{os.getpid()}-try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode != 0:
        return f"network namespaces are refused here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", name], capture_output=True)
    return None


@cache
def _no_mounts() -> str | None:
    """Why file systems cannot be mounted here; None where they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "mounting file systems needs Linux and root"
    with tempfile.TemporaryDirectory() as place:
        made = subprocess.run(["mount", "-t", "tmpfs", "none", place], capture_output=True, text=True)
        if made.returncode != 0:
            return f"mounts are refused here: {made.stderr.strip()}"
        subprocess.run(["umount", place], capture_output=True)
    return None


@cache
def _no_postfix() -> str | None:
    """Why Postfix cannot be run here; None where it can."""
    missing = [tool for tool in ("postfix", "saslpasswd2") if _which(tool) is None]
    return f"{' and '.join(missing)} missing: python3 tests/check.py --system-packages" if missing else None


@cache
def _missing(tools: tuple[str, ...]) -> str | None:
    """Why a test that runs these programs cannot run here; None where they are all there."""
    missing = [tool for tool in tools if _which(tool) is None]
    return f"{' and '.join(missing)} missing: python3 tests/check.py --system-packages" if missing else None


@cache
def _not_unpacked() -> str | None:
    """Why the servers that are not installed cannot be run here; None where they can."""
    if unpacked().is_dir():
        return None
    return "Exim and Sendmail are not unpacked: python3 tests/check.py --system-packages"


def _which(tool: str) -> str | None:
    # Daemons live in sbin, which is not on everybody's path.
    return shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        reason: str | None = None
        if item.get_closest_marker("slow") and not config.getoption("--long"):
            reason = LONG_FORM
        elif item.get_closest_marker("netns"):
            reason = _no_namespaces()
        if reason is None and item.get_closest_marker("mounts"):
            reason = _no_mounts()
        if reason is None and item.get_closest_marker("postfix"):
            reason = _no_postfix()
        if reason is None and item.get_closest_marker("unpacked"):
            reason = _not_unpacked()
        for marker in item.iter_markers("tools"):
            reason = reason or _missing(marker.args)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))
