"""`host.identity`: whom a command of root's becomes. Giving root up is for good, so it is done in a child."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from siteagent.host import identity

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: chown and setuid")
NOBODY = 65534


def test_a_state_directory_that_is_not_there_yet_has_no_owner(tmp_path: Path) -> None:
    assert identity.owner_to_become(tmp_path / "none") is None


@root_only
def test_what_root_owns_root_works_with(tmp_path: Path) -> None:
    assert identity.owner_to_become(tmp_path) is None


@root_only
def test_root_becomes_the_owner(tmp_path: Path) -> None:
    os.chown(tmp_path, NOBODY, NOBODY)
    assert identity.owner_to_become(tmp_path) == NOBODY


def in_a_child(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=20)


@root_only
def test_root_is_given_up_for_good_with_its_groups() -> None:
    program = (
        "import json, os\n"
        "from siteagent.host import identity\n"
        f"identity.become({NOBODY})\n"
        "try:\n    os.setuid(0)\n    back = True\n"
        "except PermissionError:\n    back = False\n"
        "print(json.dumps([os.getresuid(), os.getresgid(), 0 in os.getgroups(), back, os.environ['USER']]))\n"
    )
    done = in_a_child(program)
    users, groups, roots, back, name = json.loads(done.stdout)
    assert set(users) == {NOBODY} and len(set(groups)) == 1 and groups[0] != 0
    assert (roots, back, name) == (False, False, "nobody"), done.stderr


@root_only
def test_an_owner_that_is_no_user_is_told() -> None:
    program = (
        "from siteagent.errors import PermissionProblem\n"
        "from siteagent.host import identity\n"
        "try:\n    identity.become(4_000_000)\n"
        "except PermissionProblem as error:\n    print(int(error.exit_code), error.why)\n"
    )
    assert in_a_child(program).stdout == "77 user 4000000: there is no such user\n"


def test_who_is_not_root_becomes_nobody_else(tmp_path: Path) -> None:
    was = os.geteuid()
    if was == 0:
        os.seteuid(NOBODY)
    try:
        assert identity.owner_to_become(tmp_path) is None
    finally:
        os.seteuid(was)


@root_only
def test_what_root_makes_for_a_service_its_user_may_read_and_nobody_else(tmp_path: Path) -> None:
    state, secret = tmp_path / "state", tmp_path / "secret"
    state.mkdir()
    secret.touch(mode=0o600)
    identity.share([secret, tmp_path / "absent"], state)
    assert secret.stat().st_mode & 0o777 == 0o600, "no service is installed yet"
    os.chown(state, NOBODY, NOBODY)
    identity.share([secret, tmp_path / "absent"], state)
    status = secret.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (0, NOBODY, 0o640)
