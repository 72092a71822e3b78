"""The native protocol: exact fields, order kept, nothing lost while journald is away."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator

import pytest
from stage import Journal, needs_root, parse

from jobsvc import loop, native

pytestmark = needs_root  # it is root that journald believes, and whose buffers have room


@pytest.fixture
def path() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="jobsvc-", dir="/tmp") as directory:
        yield f"{directory}/journal"


def turn(events: loop.Loop, until: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline
        events.turn(time.monotonic() + 0.05)


def entry(text: bytes) -> native.Entry:
    return native.Entry([b"MESSAGE=", text, b"\n"])


@pytest.mark.parametrize("value", ["", "plain", "a=b", "two\nlines", "X=1\nY=2", "\udcff"])
def test_a_field_stays_one_field(value: str) -> None:
    data = native.field("NAME", value)
    assert parse(data) == {"NAME": value.encode("utf-8", "surrogateescape")}


def test_entries_arrive_in_order_and_are_told_of(path: str) -> None:
    journal = Journal(path)
    sent: list[native.Range] = []
    events = loop.Loop()
    sender = native.Sender(events, path, lambda: None, sent.append)
    for n in range(5):
        sender.send(native.Entry([b"MESSAGE=%d\n" % n], None, ("stdout", n, n + 1)))
    assert not sender.busy
    turn(events, lambda: len(journal.entries) == 5)
    assert [e["MESSAGE"] for e in journal.entries] == list("01234")
    assert sent == [("stdout", n, n + 1) for n in range(5)]
    journal.gone()


def test_a_full_queue_is_waited_for_without_spinning(path: str) -> None:
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.bind(path)
    events = loop.Loop()
    room: list[bool] = []
    sender = native.Sender(events, path, lambda: room.append(True), lambda _: None)
    count = 0
    while not sender.busy:
        sender.send(entry(b"%d" % count))
        count += 1
    used = time.process_time()
    events.turn(time.monotonic() + 0.3)
    assert time.process_time() - used < 0.05
    assert not sender.processed()
    for n in range(count):
        events.turn(time.monotonic())
        assert receiver.recv(100) == b"MESSAGE=%d\n" % n
    assert room
    assert sender.processed()
    receiver.close()


def test_what_is_too_big_for_a_datagram_goes_as_a_sealed_file(path: str) -> None:
    journal = Journal(path)
    events = loop.Loop()
    sender = native.Sender(events, path, lambda: None, lambda _: None)
    big = os.urandom(5_000_000)
    data = native.Entry([b"MESSAGE\n", len(big).to_bytes(8, "little"), big, b"\n"])
    sender.send(data)
    turn(events, lambda: journal.entries)
    assert journal.entries[0].fields["MESSAGE"] == big
    journal.gone()


def test_connects_again_and_sends_what_it_kept(path: str) -> None:
    events = loop.Loop()
    sender = native.Sender(events, path, lambda: None, lambda _: None)
    sender.send(entry(b"early"))
    assert sender.busy
    assert sender.gone_since is not None
    journal = Journal(path)
    turn(events, lambda: journal.entries)
    assert not sender.busy
    assert sender.gone_since is None
    journal.gone()
    sender.send(entry(b"lost or kept"))
    sender.send(entry(b"kept"))
    assert sender.busy
    journal.open()
    turn(events, lambda: journal.entries[-1]["MESSAGE"] == "kept")
    assert journal.entries[-1]["MESSAGE"] == "kept"
    journal.gone()


def test_the_pause_between_attempts_grows(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "now", lambda: 100.0)
    events = loop.Loop()
    sender = native.Sender(events, path, lambda: None, lambda _: None)
    sender.send(entry(b"x"))
    pauses = []
    for _ in range(10):
        when, callback = events.deadlines.pop("journal")
        pauses.append(when - 100)
        callback()
    assert pauses[0] < 0.01
    assert [round(pause, 2) for pause in pauses] == sorted(round(pause, 2) for pause in pauses)
    assert 1.9 < pauses[-1] <= 2.0
    assert sender.busy


def test_what_was_never_sent_is_known(path: str) -> None:
    sender = native.Sender(loop.Loop(), path, lambda: None, lambda _: None)
    sender.send(native.Entry([b"x"], None, ("stdout", 0, 10)))
    sender.send(native.Entry([b"MESSAGE=event\n"]))
    sender.send(native.Entry([b"x"], None, ("stderr", 5, 7)))
    assert sender.unsent() == [("stdout", 0, 10), ("stderr", 5, 7)]


def test_taking_is_noticed_without_polling(path: str) -> None:
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.bind(path)
    events = loop.Loop()
    sender = native.Sender(events, path, lambda: None, lambda _: None)
    sender.send(entry(b"one"))
    sender.send(entry(b"two"))
    calls: list[bool] = []
    sender.watch_taking(lambda _: calls.append(sender.processed()))
    events.turn(time.monotonic() + 0.05)  # it may say at once that there is room
    del calls[:]
    events.turn(time.monotonic() + 0.1)
    assert calls == []
    receiver.recv(100)
    events.turn(time.monotonic() + 0.1)
    assert calls == [False]
    receiver.recv(100)
    events.turn(time.monotonic() + 0.1)
    assert calls == [False, True]
    receiver.close()
