"""What is held for each node, in memory."""

from __future__ import annotations

from siteagent.hub.queue import Queue
from siteagent.store.held import Held

N = "office.example"


def filled(count: int = 5) -> Queue:
    queue = Queue()
    for n in range(1, count + 1):
        queue.add(N, Held(n, 10 * n, 1000 + n))
    return queue


def test_the_oldest_go_first() -> None:
    queue = filled()
    assert [held.id for held in queue.take(N, 3)] == [1, 2, 3]
    assert [held.id for held in queue.take(N, 3)] == [4, 5]
    assert queue.take(N, 3) == []


def test_what_is_on_its_way_still_counts() -> None:
    queue = filled()
    queue.take(N, 5)
    assert (queue.count(N), queue.bytes(N), queue.oldest(N)) == (5, 150, None)


def test_what_came_back_is_not_handed_out_again_in_the_same_release() -> None:
    queue = filled(2)
    first, second = queue.take(N, 2)
    queue.put_back(N, second)
    queue.put_back(N, first)
    assert queue.take(N, 2) == []
    queue.rewind(N)
    assert queue.take(N, 2) == [first, second]


def test_what_was_not_looked_at_comes_next() -> None:
    queue = filled(4)
    batch = queue.take(N, 3)
    queue.unread(N, batch[1:])
    assert [held.id for held in queue.take(N, 9)] == [2, 3, 4]


def test_a_node_without_mail_leaves_nothing_behind() -> None:
    queue = filled(1)
    (held,) = queue.take(N, 1)
    queue.gone(N, held)
    assert (queue.nodes(), queue.count(N), queue.bytes(N), queue.totals()) == ([], 0, 0, (0, 0))


def test_removing_spares_what_is_on_its_way() -> None:
    queue = filled(3)
    queue.take(N, 1)
    assert queue.remove(N, {1, 2}) == 1
    assert (queue.count(N), queue.bytes(N)) == (2, 40)


def test_older_ones_are_found_and_taken_out_of_the_middle() -> None:
    queue = filled(4)
    old = queue.older_than(N, 2)
    assert [held.id for held in old] == [1, 2]
    assert queue.take_these(N, old) == old
    assert [held.id for held in queue.take(N, 9)] == [3, 4]
    queue.put_back(N, old[0])
    queue.gone(N, old[1])
    queue.rewind(N)
    assert [held.id for held in queue.take(N, 9)] == [1]
