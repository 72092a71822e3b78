"""The client on a real bus, against a service that comes, goes and misbehaves."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fake_service import BOOT, FakeService, GoAway, Refusal, job

from jobsvc import errors
from jobsvc.chunks import Chunk, Missing
from jobsvc.client import Client
from jobsvc.client_bus import Connection, system_bus
from jobsvc.client_logs import LogStream
from jobsvc.formats import End, Trailer

ID = job()["Id"]


@pytest.fixture(autouse=True)
def on_private_bus(bus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus)


@pytest.fixture(params=[True, False], ids=["fds", "no-fds"])
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    with Client(fds=request.param) as client:
        yield client


def collect(stream: LogStream) -> tuple[bytes, bytes, Trailer]:
    out, end = {"stdout": b"", "stderr": b""}, None
    for thing in stream:
        if isinstance(thing, Chunk):
            out[thing.stream] += thing.data
        else:
            end = thing
    assert end
    return out["stdout"], out["stderr"], end


def test_a_connection_negotiates_fds_and_does_without() -> None:
    with Client(fds=True) as with_fds, Client() as without:
        assert with_fds.bus.fds
        assert not without.bus.fds
        assert with_fds.bus.unique_name.startswith(":")


def test_a_bridge_that_refuses_fds_is_good_enough() -> None:
    """Any connected socket will do; here one whose other end speaks for the bus, without fds."""
    ours, theirs = socket.socketpair()
    relay = threading.Thread(target=_bridge, args=(theirs,), daemon=True)
    relay.start()
    with Client(ours, fds=True) as client:
        assert not client.bus.fds
        assert client.bus.unique_name.startswith(":")


def _bridge(theirs: socket.socket) -> None:
    bus = system_bus()
    for source, sink, edit in ((theirs, bus, b"NEGOTIATE_UNIX_FD\r\n"), (bus, theirs, None)):
        threading.Thread(target=_pump, args=(source, sink, edit), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket, edit: bytes | None) -> None:
    try:
        while data := source.recv(65536):
            if edit and edit in data:  # the bus answers an unknown command with ERROR
                data = data.replace(edit, b"NEGOTIATE_NOTHING\r\n")
            sink.sendall(data)
    except OSError:
        pass


def test_whoever_is_not_a_bus_is_told_apart() -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(b"REJECTED ANONYMOUS\r\nREJECTED\r\n")
    with pytest.raises(errors.ServiceUnavailable, match="does not let us in"):
        Connection(ours)
    ours, theirs = socket.socketpair()
    theirs.close()
    with pytest.raises(errors.ServiceUnavailable, match="does not let us in"):
        Connection(ours)


def test_no_bus_and_no_service_are_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    with Client() as client, pytest.raises(errors.ServiceUnavailable, match="not available"):
        client.status(ID)
    for address in ("unix:path=/nonexistent", "tcp:host=x", "garbage", "unix:"):
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
        with pytest.raises(errors.ServiceUnavailable, match="bus"):
            Client()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NoSuchJob", errors.NoSuchJob),
        ("InvalidSpec", errors.InvalidSpec),
        ("WrongState", errors.WrongState),
        ("Quota", errors.Quota),
        ("org.freedesktop.DBus.Error.AccessDenied", errors.AccessDenied),
        ("org.example.Else", errors.Internal),
        ("org.freedesktop.systemd1.UnitMasked", errors.ServiceUnavailable),
        ("org.freedesktop.systemd1.NoSuchUnit", errors.ServiceUnavailable),
        ("org.freedesktop.systemd1.ShuttingDown", errors.ServiceUnavailable),
    ],
)
def test_errors_keep_their_kind_and_text(
    service: FakeService, client: Client, name: str, kind: type[errors.JobsvcError]
) -> None:
    def refuse(*_: Any) -> Any:
        raise Refusal(name, "because")

    service.on["Status"] = refuse
    with pytest.raises(kind, match="because"):
        client.status(ID)


def test_a_password_is_asked_for_only_if_somebody_can_be_asked(service: FakeService) -> None:
    def refuse(job_id: str, options: Any) -> Any:
        if service.flags[-1] & 4:
            return "", ()
        raise Refusal("org.freedesktop.DBus.Error.InteractiveAuthorizationRequired", "not yours")

    class Agent:
        opened = 0

        def open(self) -> None:
            self.opened += 1

    service.on["Stop"] = refuse
    with Client() as client:
        with pytest.raises(errors.InteractiveAuthorizationRequired, match="not yours"):
            client.call("Stop", "sa{sv}", ID, {})
        client.agent = agent = Agent()
        client.call("Stop", "sa{sv}", ID, {})
        (outcome,) = client.pipelined("Stop", "sa{sv}", [("arch", ID, (ID, {}))])
    assert outcome.error is None
    assert agent.opened == 2


def test_a_password_may_show_a_job_that_was_named_in_full(service: FakeService) -> None:
    def hide(job_id: str, options: Any) -> Any:
        if service.flags[-1] & 4 and job_id == ID:
            return FakeService.Status(service, job_id, options)
        raise Refusal("NoSuchJob", f"no job {job_id!r}")

    class Agent:
        opened = 0

        def open(self) -> None:
            self.opened += 1

    service.jobs[ID] = job()
    service.on |= {"Status": hide, "Stop": lambda job_id, options: ("", hide(job_id, options)[1][1:])}
    with Client() as client:
        with pytest.raises(errors.NoSuchJob):
            client.status(ID)
        client.agent = agent = Agent()
        assert client.status(ID)["Id"] == ID
        (outcome,) = client.pipelined("Stop", "sa{sv}", [(ID, ID, (ID, {}))])
        assert (outcome.error, agent.opened) == (None, 2)
        with pytest.raises(errors.NoSuchJob):
            client.status("arch")
        assert agent.opened == 2
        with pytest.raises(errors.NoSuchJob):
            client.status("0" * 16)
    assert [member for member, _ in service.calls].count("Status") == 6


def test_what_is_not_utf8_is_refused_here(service: FakeService, client: Client) -> None:
    with pytest.raises(errors.InvalidSpec, match="UTF-8"):
        client.start({"Command": ("as", ["echo", "\udcff"])})


def test_large_answers_arrive_whole(service: FakeService, client: Client) -> None:
    service.jobs = {each["Id"]: each for each in (job(n, Reason="x" * 2000) for n in range(600))}
    assert [each["Id"] for each in client.list({})] == list(service.jobs)
    assert len(list(client.list({}, 501))) == 501
    assert len(list(client.list({}, 0))) == 0


def test_many_calls_are_pipelined_and_answered_in_order(service: FakeService, client: Client) -> None:
    service.jobs = {each["Id"]: each for each in (job(n) for n in range(100))}
    names = [f"{n:016x}" for n in range(0, 200, 2)]
    calls: list[tuple[str, str, tuple[Any, ...]]] = [(name, name, (name, {})) for name in names]
    outcomes = list(client.pipelined("Stop", "sa{sv}", calls))
    assert [outcome.id for outcome in outcomes] == names
    assert [outcome.error is None for outcome in outcomes] == [True] * 50 + [False] * 50


def test_a_lost_answer_starts_nothing_twice(service: FakeService, client: Client) -> None:
    """The service takes the job and dies before it says so."""
    service.jobs[ID] = job()
    client.status(ID)
    back: list[threading.Thread] = []

    def take_and_die(spec: Any) -> Any:
        service.Start(spec)
        del service.on["Start"]
        back.append(threading.Timer(0.2, service.enter))
        back[0].start()
        raise GoAway

    service.on["Start"] = take_and_die
    job_id = client.start({"Command": ("as", ["true"]), "RequestId": ("s", "r1")})
    back[0].join()
    assert [each["Id"] for each in service.jobs.values() if each.get("RequestId") == "r1"] == [job_id]


def test_what_cannot_be_repeated_is_not(service: FakeService, client: Client) -> None:
    def die(*_: Any) -> Any:
        raise GoAway

    service.on["Restart"] = die
    with pytest.raises(errors.ServiceUnavailable, match="went away"):
        client.call("Restart", "sa{sv}", ID, {})
    service.enter()


def test_the_end_of_jobs_is_heard_of_not_polled(service: FakeService, client: Client) -> None:
    service.jobs = {each["Id"]: each for each in (job(1), job(2), job(3, State="failed"))}
    first, second, third = service.jobs
    ends = client.ended([first, second, third])
    assert next(ends)[0] == third
    asked = len(service.calls)
    threading.Timer(0.1, service.end, (second,), {"State": "completed"}).start()
    job_id, status = next(ends)
    assert (job_id, status and status["State"]) == (second, "completed")
    assert len(service.calls) == asked + 1
    del service.jobs[first]
    service.tell("JobRemoved", "so", (first, "/"))
    assert next(ends) == (first, None)
    assert next(ends, None) is None


def test_each_new_reason_to_wait_is_told(service: FakeService, client: Client) -> None:
    """Only what runs and waits in all is announced when it changes."""
    service.jobs[ID] = job(State="queued", QueueReason="after a job")

    def news(reason: str) -> None:
        told.append(reason)
        if reason == "after a job":
            service.jobs[ID]["QueueReason"] = "no free slot"
            for _ in range(20):
                service.tell("PropertiesChanged", "sa{sv}as", ("org.jobsvc1.Manager", {"Queued": ("u", 7)}, []))
        else:
            service.jobs[ID]["State"] = "running"
            service.tell("JobChanged", "sss", (ID, "running", ""))

    told: list[str] = []
    client.while_queued(ID, news)
    assert told == ["after a job", "no free slot"]
    assert [member for member, _ in service.calls].count("Status") <= 5


def test_waiting_goes_on_across_a_restart_of_the_service(service: FakeService, client: Client) -> None:
    service.jobs[ID] = job()
    ends = client.ended([ID])

    def restart() -> None:
        service.saw("Subscribe")
        service.leave()
        service.jobs[ID]["State"] = "completed"  # it ended while nobody could tell
        service.enter()

    threading.Thread(target=restart).start()
    job_id, status = next(ends)
    assert (job_id, status and status["State"]) == (ID, "completed")


def test_forged_signals_are_ignored(service: FakeService, client: Client) -> None:
    from fake_service import EMITTER
    from jeepney import HeaderFields, new_signal
    from jeepney.io.blocking import open_dbus_connection

    service.jobs[ID] = job()
    client.status(ID)
    client._watch()
    with open_dbus_connection(service.address, auth_timeout=360) as forger:
        signal = new_signal(EMITTER, "JobChanged", "sss", (ID, "failed", "lost"))
        signal.header.fields[HeaderFields.destination] = client.bus.unique_name
        forger.send(signal)
        assert client._next_signal(0.2) is None


def test_output_comes_whole_and_with_its_end(service: FakeService, client: Client) -> None:
    service.jobs[ID] = job()
    service.write("stdout", b"a" * 3_000_000)
    service.write("stderr", b"\0\xff \n\n")
    service.write("stdout", b"end")
    stream = LogStream(client, ID, {"Follow": ("b", True)})
    out, err, trailer = collect(stream)
    assert out == b"a" * 3_000_000 + b"end"
    assert err == b"\0\xff \n\n"
    assert trailer.end.result == "success"
    assert stream.boot_id == BOOT


def test_output_is_taken_up_again_at_the_byte(service: FakeService, client: Client) -> None:
    """The service is restarted in the middle; what it sends again is not doubled."""
    service.jobs[ID] = job()
    service.write("stdout", b"one ")
    service.write("stderr", b"err")
    service.trailer = None
    method = "Logs" if client.bus.fds else "ReadLogs"

    original = getattr(service, method)

    def restart() -> None:
        service.saw(method)
        service.leave()
        service.write("stdout", b"two")
        service.trailer = Trailer(End(1, "failed", "exit-code", 3))
        service.on[method] = from_the_beginning
        service.enter()

    def from_the_beginning(job_id: str, options: Any) -> Any:
        del service.on[method]
        return original(job_id, {name: options[name] for name in options if name != "FromStdout"})

    thread = threading.Thread(target=restart)
    thread.start()
    out, err, trailer = collect(LogStream(client, ID, {}))
    thread.join()
    assert (out, err) == (b"one two", b"err")
    assert trailer.end.exit_code == 3
    assert not trailer.missing


def test_a_hole_is_named_even_if_the_trailer_does_not(service: FakeService, client: Client) -> None:
    service.jobs[ID] = job()
    service.output = [Chunk("stdout", 10, b"late", 1)]
    assert collect(LogStream(client, ID, {}))[2].missing == (Missing("stdout", 0, 10, "lost"),)
    service.trailer = Trailer(End(1, "completed"), (Missing("stdout", 0, 10, "cut"),))
    assert collect(LogStream(client, ID, {}))[2].missing == (Missing("stdout", 0, 10, "cut"),)


def test_a_part_of_the_output_is_not_a_hole(service: FakeService, client: Client) -> None:
    service.jobs[ID] = job()
    service.output = [Chunk("stdout", 10, b"one\n", 1), Chunk("stdout", 14, b"two\n", 1)]
    out, _, trailer = collect(LogStream(client, ID, {"Lines": ("u", 2)}, {"stdout": 18, "stderr": 0}))
    assert out == b"one\ntwo\n"
    assert not trailer.missing


def test_who_has_seen_the_end_is_told_nothing_more(service: FakeService, client: Client) -> None:
    service.jobs[ID] = job(State="completed")
    assert [job_id for job_id, _ in client.ended([ID])] == [ID]
    client.status(ID)
    assert not service.subscribers
    ends = client.ended([ID])
    next(ends)
    service.end(ID, State="failed")
    assert not list(ends)
    client.status(ID)
    assert not client.bus.signals


def test_after_a_restart_a_tail_is_not_extended_backwards(service: FakeService) -> None:
    service.jobs[ID] = job()
    service.output = [Chunk("stdout", 10, b"tail", 1)]
    service.trailer = None
    with Client(fds=True) as client:
        stream = LogStream(client, ID, {"Lines": ("u", 1)}, {"stdout": 10, "stderr": 5})
        things = iter(stream)
        assert isinstance(next(things), Chunk)
        service.trailer = Trailer(End(1, "completed"))
        assert isinstance(next(things), Trailer)
    options = {key: value for key, (_, value) in service.calls[-1][1][1].items()}
    assert (options["FromStdout"], options["FromStderr"]) == (14, 5)
    assert "Lines" not in options


def test_a_service_that_never_ends_the_output_is_given_up(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobsvc.client_logs.PAUSES", (0.0, 0.01, 0.01))
    service.jobs[ID] = job()
    service.trailer = None
    with Client(fds=True) as client, pytest.raises(errors.Internal, match="again and again"):
        collect(LogStream(client, ID, {}))


def test_a_service_that_stays_away_is_given_up(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    service.jobs[ID] = job()
    told: list[float] = []
    with Client() as client:
        client.status(ID)
        client.on_wait = lambda: told.append(time.monotonic())
        service.leave()
        with pytest.raises(errors.ServiceUnavailable, match="did not come back"):
            client.await_service(4)
    service.enter()
    assert len(told) == 1
