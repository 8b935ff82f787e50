"""Who may connect to us, and for whom: the providers' `peers`, resolved to networks.

Names resolve in the background, each counting as soon as it is there; until one does, its last known addresses count,
and a name that was never resolved admits nobody (S2). Without `peers` the addresses of `host` count.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence

from siteagent.config.sections import Provider
from siteagent.errors import SiteAgentError
from siteagent.inbound.admission import Network, PeerTable, plain_peer
from siteagent.wire.reply import Reply

STRANGER = Reply(421, "4.7.1", "this host takes mail from its provider only, try again later")
_NEAR_PREFIX = {4: 16, 6: 32}

Resolve = Callable[[str], Awaitable[tuple[str, ...]]]
Known = Callable[[str], tuple[str, ...]]
Spf = Callable[[str], Awaitable[tuple[Network, ...]]]


class Peering:
    """The table of peers, and what is asked of it. On the loop's thread."""

    def __init__(
        self,
        providers: Sequence[Provider],
        *,
        resolve: Resolve,
        known: Known,
        spf: Spf,
        note: Callable[[str], None],
    ) -> None:
        self._providers = tuple(providers)
        self._resolve = resolve
        self._known = known
        self._spf = spf
        self._note = note
        self._spf_networks: dict[str, tuple[Network, ...]] = {}
        self._told: set[str] = set()
        self._rebuild()

    def reconfigure(self, providers: Sequence[Provider]) -> None:
        """Other providers from here on; `refresh` should follow."""
        self._providers = tuple(providers)
        self._rebuild()

    async def refresh(self) -> bool:
        """Asks DNS for every name once. True: somebody's networks are others now. Trouble is noted once a name.

        All at once: behind a name that DNS is silent about, a provider that resolves would be a stranger for minutes.
        """
        before = self._counted
        names = {name for provider in self._providers for name in self._names(provider)}
        await asyncio.gather(*(self._look_up(name) for name in names))
        self._rebuild()
        return self._counted != before

    async def _look_up(self, name: str) -> None:
        try:
            if name.startswith("spf:"):
                self._spf_networks[name] = await self._spf(name.removeprefix("spf:"))
            else:
                await self._resolve(name)
        except SiteAgentError as error:
            if name not in self._told:
                self._told.add(name)
                self._note(f"cannot tell the addresses of {name} yet: {error.why}")
        else:
            self._told.discard(name)
            self._rebuild()

    def admit(self, peer: str) -> Reply | None:
        """None: welcome. 421 and never 5yz, so that a provider on a new address keeps its mail (S1)."""
        return None if self._table.candidates(peer) else STRANGER

    def candidates(self, peer: str) -> tuple[str, ...]:
        return self._table.candidates(peer)

    def suspects(self, peer: str, *, waiting: Mapping[str, bool], ours: Collection[str]) -> tuple[str, ...]:
        """Which of the providers that we are `waiting` for (name: whether a session of it came) a stranger may be.

        The very host that was asked is that provider and no other; else those from whom nobody came yet, and those
        with an address near by. Nobody, if it is we ourselves (`ours`: our addresses), looking whether we answer.
        """
        if plain_peer(peer) in ours:
            return ()
        asked = self.asked_at(peer, waiting)
        return asked or tuple(name for name, came in waiting.items() if not came or self.near(name, peer))

    def asked_at(self, peer: str, names: Iterable[str]) -> tuple[str, ...]:
        """Those of `names` whose `host` has this very address."""
        return tuple(name for name in names if self._is_host(name, peer))

    def _is_host(self, provider: str, peer: str) -> bool:
        found = next((p for p in self._providers if p.name == provider), None)
        own = _literals(self._known(found.host)) if found else []
        return bool(PeerTable({provider: own}).candidates(peer))

    def near(self, provider: str, peer: str) -> bool:
        """Whether an unlisted `peer` may well be `provider`: next to an address of it, or in a private network.

        The Internet knocks at every open port 25; only what looks like the provider shall make a round incomplete.
        """
        try:
            address = ipaddress.ip_address(plain_peer(peer))
        except ValueError:
            return False
        if address.is_private:
            return True
        neighbourhood = ipaddress.ip_network((address, _NEAR_PREFIX[address.version]), strict=False)
        found = next((p for p in self._providers if p.name == provider), None)
        own = [*self._of(found), *_literals(self._known(found.host))] if found else []
        return any(network.version == address.version and network.overlaps(neighbourhood) for network in own)

    def _names(self, provider: Provider) -> list[str]:
        """What must be resolved for `provider`: its host always (it is asked there), and its peers."""
        return [provider.host, *(peer for peer in provider.peers if not _literals([peer]))]

    def _of(self, provider: Provider) -> list[Network]:
        if not provider.peers:
            return _literals(self._known(provider.host))
        found: list[Network] = []
        for peer in provider.peers:
            if peer.startswith("spf:"):
                found += self._spf_networks.get(peer, ())
            else:
                found += _literals([peer]) or _literals(self._known(peer))
        return found

    def _networks(self) -> dict[str, list[Network]]:
        return {provider.name: self._of(provider) for provider in self._providers}

    def _rebuild(self) -> None:
        self._counted = self._networks()
        self._table = PeerTable(self._counted)


def _literals(texts: Sequence[str]) -> list[Network]:
    """The addresses and networks among `texts`; a host bit set in a network is forgiven."""
    found: list[Network] = []
    for text in texts:
        try:
            found.append(ipaddress.ip_network(text.strip("[]"), strict=False))
        except ValueError:
            continue
    return found
