from __future__ import annotations

from siteagent.inbound.places import House, Meter, Places


class Waiting:
    def __init__(self, name: str, log: list[str]) -> None:
        self.name = name
        self._log = log

    def place_is_free(self) -> None:
        self._log.append(self.name)


def test_places_are_given_in_the_order_of_arrival() -> None:
    log: list[str] = []
    places = Places(total=10, each=1)
    guests = [Waiting(name, log) for name in "abcd"]
    assert [places.enter(guest, "isp") for guest in guests] == [True, False, False, False]
    places.leave(guests[2], "isp")
    places.leave(guests[0], "isp")
    places.leave(guests[1], "isp")
    assert log == ["b", "d"]


def test_one_provider_does_not_take_the_places_of_another() -> None:
    places = Places(total=10, each=1)
    assert places.enter(Waiting("a", []), "isp")
    assert places.enter(Waiting("b", []), "other")


def test_all_together_are_bounded_and_those_who_wait_count() -> None:
    places = Places(total=2, each=1)
    first, second = Waiting("a", []), Waiting("b", [])
    places.enter(first, "isp")
    places.enter(second, "isp")
    assert places.full
    assert places.waiting == 1
    places.leave(second, "isp")
    assert not places.full


def test_fewer_places_after_a_reload_empty_out_before_the_next_gets_one() -> None:
    log: list[str] = []
    places = Places(total=10, each=2)
    guests = [Waiting(name, log) for name in "abc"]
    for guest in guests:
        places.enter(guest, "isp")
    places.each = 1
    places.leave(guests[0], "isp")
    assert log == []
    places.leave(guests[1], "isp")
    assert log == ["c"]


def test_nothing_is_remembered_of_who_is_gone() -> None:
    places = Places(total=10, each=2)
    for _ in range(100):
        guests = [Waiting("x", []) for _ in range(5)]
        for guest in guests:
            places.enter(guest, "isp")
        places.meter("isp", 300).add(0, 10)
        for guest in reversed(guests):
            places.leave(guest, "isp")
    assert (places._count, places._taken, places._queues, places._meters) == (0, {}, {}, {})


def test_a_meter_forgets_what_is_older_than_its_window() -> None:
    meter = Meter(300)
    meter.add(0, 1000)
    meter.add(290, 7)
    assert meter.octets_since(0) == 1007
    meter.add(400, 5)
    assert meter.octets_since(100) == 12
    for second in range(400, 10_000):
        meter.add(second, 1)
    assert len(meter._slots) <= 11
    assert 300 <= meter.octets_since(9_700) <= 331


def test_refusals_are_told_twenty_times_a_minute_for_each_address() -> None:
    house = House(total=1, each=1)
    assert [house.may_tell("192.0.2.1", 0) for _ in range(30)].count(True) == 20
    assert house.may_tell("192.0.2.2", 0)
    assert house.may_tell("192.0.2.1", 61)
    for number in range(2000):
        house.may_tell(f"2001:db8::{number:x}", 0)
    assert len(house._told) <= 500


def test_a_network_of_ipv6_addresses_is_told_of_as_one() -> None:
    house = House(total=1, each=1)
    told = [house.may_tell(f"2001:db8::{number:x}", 0.0) for number in range(1, 100)]
    assert told.count(True) == 20
    assert house.may_tell("2001:db8:0:1::1", 0.0)
    assert house.may_tell("not an: address", 0.0)
