"""docs/ that are printed from the code are fresh, and complete."""

from pathlib import Path

from siteagent.cli.main import COMMANDS
from siteagent.cli.manual import pages as manual_pages
from siteagent.cli.pages import events_page
from siteagent.events import by_name

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_of_events_is_fresh() -> None:
    assert (DOCS / "events.md").read_text(encoding="utf-8") == events_page(), "run python -m siteagent.cli.pages"


def test_every_event_has_its_section() -> None:
    assert [row[3:] for row in events_page().splitlines() if row.startswith("## ")] == list(by_name())


def test_the_manual_pages_are_fresh() -> None:
    for place, page in manual_pages().items():
        path = DOCS / "man" / Path(place).name
        assert path.read_text(encoding="utf-8") == page, "run python -m siteagent.cli.manual"


def test_every_command_and_every_option_of_the_file_is_in_the_manual() -> None:
    first, second = manual_pages().values()
    assert [name for name in COMMANDS if f"\n.SS {name.replace('-', chr(92) + '-')}" not in first] == []
    assert "\n.B defer_above_bytes\n" in second and "\n.SH [[mailbox]]\n" in second
