"""The Maildir writer: files appear in ``new/`` whole, once, and stay.

The Maildir name is fixed by the spool before anything is written, so that every step may be done again: written to
``tmp/``, synced, renamed into ``new/``, ``new/`` synced, and only then is the spool told (cr.yp.to/proto/maildir.html,
and ``docs/architecture.md`` for the order). A batch is written whole before the first sync, and shares the last one.
No octet from the wire becomes part of a path.

``,S=`` is the size of the file and ``,W=`` its size with CRLF line ends; Dovecot believes both without looking.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from siteagent.config.sections import Mailbox
from siteagent.delivery.target import Delivered, Load
from siteagent.errors import SiteAgentError
from siteagent.store.body import Envelope, Placement
from siteagent.store.durable import Disk, Folder, foreign_link, make_directories
from siteagent.store.spool import Filing
from siteagent.wire import trace

_FOLDERS = ("tmp", "new", "cur")
_OLD_SECONDS = 36 * 3600
_OURS = re.compile(r"\d+\.M\d+P(\d+)Q\d+R([0-9a-f]{8})\.([A-Za-z0-9._-]+?)(?:,S=\d+,W=\d+)?")
# Where a reader's additions to a name may begin: flags (";" and "!" on Windows), or mbsync's ",U=".
_ADDED = re.compile(r"[,:;!]")


@dataclass(slots=True)
class _Open:
    """The two directories of one batch. `present`: the ids of what stands in ``new/`` or ``cur/``, where asked."""

    tmp: Folder
    new: Folder
    present: frozenset[str]


@dataclass(slots=True)
class _Item:
    """One filing on its way. `temporary`: its name in ``tmp/``; `own`: that file is the spool's, its only copy."""

    filing: Filing
    head: bytes
    name: str
    size: int
    own: bool
    handle: int = -1
    temporary: str = ""
    result: Delivered | None = None
    published: bool = False

    def fail(self, error: Exception) -> None:
        self.result = Delivered(reason=_why(error), visible=self.published)


class Maildir:
    """One mailbox of the configuration, as a `Target`."""

    def __init__(self, mailbox: Mailbox, *, disk: Disk | None = None) -> None:
        self.name = mailbox.name
        self.path = mailbox.maildir
        self._mode = 0o660 if mailbox.reader else 0o600
        self._reader = mailbox.reader
        self._disk = disk or Disk()
        self._prepared = False
        self._made = False

    def place(self, envelope: Envelope) -> Placement | None:
        """Straight into ``tmp/``, header lines on top: filing is then one rename."""
        if not self._prepared:
            return None
        addresses = [address for address, target in envelope.recipients if target == self.name]
        head = header_lines(envelope.sender, addresses[0], envelope.received)
        return Placement(self.path / "tmp", head, self._mode)

    def deliver(self, batch: Sequence[Filing], load: Load) -> list[Delivered]:
        """Files `batch`; see `Target`."""
        items = [self._item(filing) for filing in batch]
        try:
            with self._opened(look=any(filing.recovered for filing in batch)) as folders:
                try:
                    self._write_all(items, folders, load)
                    self._sync_all(items, folders)
                    self._publish_all(items, folders)
                finally:
                    for item in items:
                        if item.handle >= 0:
                            self._condemn(item, folders.tmp)
        except Exception as error:  # the disk's, or a bug of ours: the mail waits for either
            for item in items:
                if item.result is None:
                    item.fail(error)
        return [item.result or Delivered(item.name, item.size) for item in items]

    # --- the steps, each for the whole batch --------------------------------------------------------------------------

    def _write_all(self, items: Sequence[_Item], folders: _Open, load: Load) -> None:
        for item in items:
            if item.filing.recovered and item.filing.message in folders.present:
                item.published = True
                continue
            try:
                if item.own:
                    self._take_own(item, folders.tmp)
                    continue
                if item.filing.recovered or item.filing.tries:
                    self._clear(folders.tmp, item.name)
                item.handle = self._disk.create(folders.tmp, item.name, self._mode)
                item.temporary = item.name
                for part in _content(item, load):
                    self._disk.write(item.handle, part)
                if len(items) > 1:
                    self._disk.start_write_back(item.handle)
            except Exception as error:  # the disk's, the spool's, or a bug of ours: it costs the others nothing
                item.fail(error)
                self._condemn(item, folders.tmp)

    def _take_own(self, item: _Item, tmp: Folder) -> None:
        """The file is in ``tmp/`` already: made young, before some cleaner calls it old."""
        filing = item.filing
        assert filing.file is not None
        item.temporary = filing.file.name
        try:
            self._disk.touch(tmp, item.temporary)
        except FileNotFoundError:
            # Nothing ever failed, and it is gone: we died between publishing and telling the spool, and a reader has
            # deleted it since. Not where the Maildir was not there (unmounted), or a cleaner may have thought it old.
            young = time.time() - filing.accepted.timestamp() < _OLD_SECONDS
            if not (filing.recovered and filing.tries == 0 and young and not self._made):
                raise
            item.published = True

    def _sync_all(self, items: Sequence[_Item], folders: _Open) -> None:
        for item in items:
            if item.handle < 0:
                continue
            try:
                self._disk.sync_file(item.handle)
                handle, item.handle = item.handle, -1
                self._disk.close(handle)
            except OSError as error:
                item.fail(error)
                self._condemn(item, folders.tmp)

    def _publish_all(self, items: Sequence[_Item], folders: _Open) -> None:
        for item in items:
            if item.result is not None or item.published:
                continue
            try:
                self._disk.publish(folders.tmp, item.temporary, folders.new, item.name)
                item.published = True
            except OSError as error:
                item.fail(error)
                self._condemn(item, folders.tmp)
        ready = [item for item in items if item.result is None]
        if not ready:
            return
        try:
            self._disk.sync_folder(folders.new)
        except OSError as error:
            for item in ready:
                item.fail(error)
                self._take_back(item, folders)

    def _take_back(self, item: _Item, folders: _Open) -> None:
        """Visible, but not durable: away with it where nobody took it yet; the next try publishes it anew."""
        if not item.own:
            self._clear(folders.new, item.name)
        elif item.filing.file is not None:
            with contextlib.suppress(OSError):
                self._disk.publish(folders.new, item.name, folders.tmp, item.filing.file.name)

    def _condemn(self, item: _Item, tmp: Folder) -> None:
        """Takes a file away that could not be written, synced or published. A file of the spool's own stays."""
        if item.handle >= 0:
            with contextlib.suppress(OSError):
                self._disk.close(item.handle)
            item.handle = -1
        if item.temporary and not item.own:
            self._clear(tmp, item.temporary)

    def _clear(self, folder: Folder, name: str) -> None:
        with contextlib.suppress(OSError):
            self._disk.remove(folder, name)

    # --- the place ----------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Makes tmp, new and cur if the parent of the Maildir exists; once. Raises OSError.

        What was there once and is gone is not made again: a vanished disk leaves an empty directory in its place.
        """
        if self._prepared:
            return
        if not self.path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, "its parent directory does not exist", str(self.path))
        mode = 0o770 if self._reader else 0o700
        for folder in _FOLDERS:
            if not (self.path / folder).is_dir():
                make_directories(self.path / folder, mode=mode, disk=self._disk)
                self._made = True
        # Also where they stood already: whoever made them may not have synced (once a start).
        self._sync_place(self.path)
        try:
            self._sync_place(self.path.parent)
        except PermissionError:
            if self._made:
                raise
        self._prepared = True

    def _sync_place(self, path: Path) -> None:
        opened = self._disk.open_folder(path.resolve())
        try:
            self._disk.sync_folder(opened)
        finally:
            self._disk.close_folder(opened)

    @contextlib.contextmanager
    def _opened(self, *, look: bool) -> Iterator[_Open]:
        """The Maildir, checked anew for every batch: what was right yesterday may be a link today."""
        self.prepare()
        if (link := foreign_link(self.path)) is not None:
            raise OSError(errno.EPERM, "a link that somebody else made", str(link))
        owners = self._owners()
        tmp = self._disk.open_folder(self.path / "tmp", owners=owners)
        try:
            new = self._disk.open_folder(self.path / "new", owners=owners)
            try:
                yield _Open(tmp, new, self._present(new) if look else frozenset())
            finally:
                self._disk.close_folder(new)
        finally:
            self._disk.close_folder(tmp)

    def _owners(self) -> set[int] | None:
        """Who may own ``new/``: we, and the mailbox's reader."""
        if sys.platform == "win32":
            return None
        else:
            import pwd

            owners = {os.geteuid()}
            if self._reader is not None:
                with contextlib.suppress(KeyError):
                    owners.add(pwd.getpwnam(self._reader).pw_uid)
            return owners

    def _present(self, new: Folder) -> frozenset[str]:
        """The ids of what was published and is still there; a reader may have moved it and added to its name."""
        found = set(self._disk.names(new))
        cur = self._disk.open_folder(self.path / "cur")
        try:
            found.update(self._disk.names(cur))
            self._disk.sync_folder(cur)  # a reader that moved it there may not have synced
        finally:
            self._disk.close_folder(cur)
        return frozenset(_ADDED.split(name, maxsplit=1)[0] for name in found)

    def _item(self, filing: Filing) -> _Item:
        head = header_lines(filing.sender, filing.addresses[0], filing.received)
        own = filing.file is not None and filing.file.parent == self.path / "tmp"
        size = filing.size + (filing.head if own else len(head))
        wire_size = size + head.count(b"\n") + filing.bare
        return _Item(filing, head, f"{filing.message},S={size},W={wire_size}", size, own)

    def sweep(self, *, keep: Collection[str], alive: Callable[[int], bool], host: str, run: str) -> list[str]:
        """Removes from ``tmp/`` what a dead process of ours left, or what of ours is older than 36 h.

        `keep`: names that the spool still needs; `run`: the random part of this process's names. Returns what went.
        """
        gone: list[str] = []
        with contextlib.suppress(OSError):
            tmp = self._disk.open_folder(self.path / "tmp", owners=self._owners())
            try:
                for name in self._disk.names(tmp):
                    match = _OURS.fullmatch(name)
                    if match is None or match[3] != host or match[2] == run or name in keep:
                        continue
                    with contextlib.suppress(OSError):
                        old = time.time() - self._disk.modified(tmp, name) > _OLD_SECONDS
                        if old or int(match[1]) == os.getpid() or not alive(int(match[1])):
                            self._disk.remove(tmp, name)
                            gone.append(name)
            finally:
                self._disk.close_folder(tmp)
        return gone


def header_lines(sender: str, address: str, received: bytes) -> bytes:
    """What we put on top of a message: Return-Path first (RFC 5321 §4.4), then the one address, then our Received."""
    return trace.return_path(sender) + trace.delivered_to(address) + received


def _content(item: _Item, load: Load) -> Iterator[Sequence[bytes]]:
    """The file's content in parts that fit into memory."""
    filing = item.filing
    if filing.file is None:
        yield (item.head, filing.data if filing.data is not None else load(filing))
        return
    yield (item.head,)
    with filing.file.open("rb") as source:
        source.seek(filing.head)
        while part := source.read(262_144):
            yield (part,)


def _why(error: Exception) -> str:
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror or error}"
    return str(error).split("\n", 1)[0] if isinstance(error, SiteAgentError) else f"{type(error).__name__}: {error}"
