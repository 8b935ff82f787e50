"""What is written and run on Windows, by its structure."""

from __future__ import annotations

import re
from pathlib import Path, PureWindowsPath
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from siteagent.config.sections import plain_name
from siteagent.host import windows

NAMESPACE = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"
PYTHON = Path(r"C:\ProgramData\siteagent\program\Scripts\python.exe")
CONFIG = Path(r"C:\ProgramData\R&D <office>\config\siteagent.toml")
TEMPLATES = Path(__file__).parents[2] / "windows"


def made(*, hub: bool = False) -> windows.Plan:
    return windows.plan(PYTHON, configuration=CONFIG, hub=hub)


def task(name: str, *, hub: bool = False) -> ElementTree.Element:
    return ElementTree.fromstring(made(hub=hub).files[name])


def text(root: ElementTree.Element, path: str) -> str:
    found = root.find("/".join(f"{NAMESPACE}{part}" for part in path.split("/")))
    assert found is not None, path
    return found.text or ""


@pytest.mark.parametrize("name", ["agent-task.xml", "link-task.xml"])
def test_a_task_is_utf_16_with_a_mark_and_crlf_as_it_declares(name: str) -> None:
    data = made().files[name]
    assert data[:2] == b"\xff\xfe"
    plain = data[2:].decode("utf-16-le")
    assert plain.startswith('<?xml version="1.0" encoding="UTF-16"?>\r\n')
    assert "\n" not in plain.replace("\r\n", "")
    assert "@" not in re.sub(r"Provider\[@Name", "", plain)


def test_the_agent_starts_at_boot_runs_without_limit_and_comes_back() -> None:
    root = task("agent-task.xml")
    assert text(root, "Triggers/BootTrigger/Enabled") == "true"
    assert text(root, "Principals/Principal/UserId") == "S-1-5-19"
    settings = {
        "ExecutionTimeLimit": "PT0S",  # else it is ended after three days
        "DisallowStartIfOnBatteries": "false",
        "StopIfGoingOnBatteries": "false",
        "MultipleInstancesPolicy": "IgnoreNew",
        "Priority": "5",
        "RestartOnFailure/Interval": "PT1M",
        "RestartOnFailure/Count": "255",
    }
    for name, value in settings.items():
        assert text(root, f"Settings/{name}") == value, name


def test_the_action_is_this_program_with_this_configuration_whatever_stands_in_its_path() -> None:
    root = task("agent-task.xml")
    assert text(root, "Actions/Exec/Command") == r"C:\ProgramData\siteagent\program\Scripts\siteagent.exe"
    assert text(root, "Actions/Exec/Arguments") == rf'--config "{CONFIG}" run'
    assert text(root, "Actions/Exec/WorkingDirectory") == str(PureWindowsPath(CONFIG).parent.parent)


def test_the_hint_is_given_on_event_10000_and_in_the_order_that_the_schema_wants() -> None:
    root = task("link-task.xml")
    trigger = root.find(f"{NAMESPACE}Triggers/{NAMESPACE}EventTrigger")
    assert trigger is not None
    assert [child.tag.removeprefix(NAMESPACE) for child in trigger] == ["Enabled", "Subscription", "Delay"]
    query = ElementTree.fromstring(text(root, "Triggers/EventTrigger/Subscription"))
    (select,) = query.iter("Select")
    assert select.attrib["Path"] == "Microsoft-Windows-NetworkProfile/Operational"
    assert "(EventID=10000)" in (select.text or "")
    assert text(root, "Actions/Exec/Arguments").endswith(" link-up")


def test_the_hub_is_a_task_of_its_own() -> None:
    root = task("hub-task.xml", hub=True)
    assert text(root, "Actions/Exec/Arguments").endswith(" hub run")
    assert r"Siteagent\Hub" in windows.shown(made(hub=True).commands[0])


def test_the_tasks_are_made_from_the_files_and_then_the_agent_is_started() -> None:
    assert [windows.shown(command) for command in made().commands] == [
        r"schtasks /Create /TN Siteagent\Agent /XML agent-task.xml /F",
        r"schtasks /Create /TN Siteagent\Link /XML link-task.xml /F",
        r"schtasks /Run /TN Siteagent\Agent",
    ]
    assert all(command.argv[0] == "schtasks" for command in windows.removal())


def test_winsw_is_told_the_same(tmp_path: Path) -> None:
    root = ElementTree.fromstring(made().files["siteagent-winsw.xml"])
    assert (root.findtext("arguments") or "").endswith(" run")
    assert root.findtext("serviceaccount/username") == r"NT AUTHORITY\LocalService"
    assert [each.attrib["action"] for each in root.iter("onfailure")] == ["restart", "restart"]
    windows.write(made(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"agent-task.xml", "link-task.xml", "siteagent-winsw.xml"}


def test_the_script_needs_an_administrator_and_shuts_ordinary_users_out() -> None:
    script = (TEMPLATES / "install.ps1").read_text("utf-8")
    assert '"/inheritance:r"' in script and "S-1-5-19" in script and "Administrator" in script
    # What lay there before keeps no right of its own: reset once the directory is shut, then what the agent needs.
    shut, reset, granted = (
        script.index(word) for word in ('"/inheritance:r"', '"/reset", "/T"', "*S-1-5-19:(OI)(CI)M")
    )
    assert shut < reset < granted and "ReparsePoint" in script
    assert "Write-Error" not in script.replace("# Not Write-Error", ""), (
        "it would end with 1, not with the code that follows"
    )
    assert "Invoke-WebRequest" not in script and "Install-Module" not in script
    for opening, closing in ("()", "{}", "[]"):
        assert script.count(opening) == script.count(closing), opening


@given(st.text(max_size=70))
def test_s50_a_name_that_the_configuration_allows_is_safe_on_ntfs_but_for_its_devices(name: str) -> None:
    if plain_name(name):
        devices = {"con", "prn", "aux", "nul"}
        stem = name.split(".")[0].lower()
        assert windows.name_is_safe(name) or stem in devices or stem[:3] in ("com", "lpt") or name[-1] == "."


@pytest.mark.parametrize("name", ["con", "NUL.txt", "com1", "a:b", "x.", "x ", "a/b", "", "a*b"])
def test_what_windows_takes_for_something_else_is_not_safe(name: str) -> None:
    assert not windows.name_is_safe(name)
