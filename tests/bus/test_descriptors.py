"""Descriptors that others send: the service never has them, whatever they come with."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from dbus_next import Message
from dbus_next.constants import MessageType
from dbus_next.signature import Variant
from house import House, Scenario, another, pretend
from stage import needs_root, use_loopback

from jobsvc import control, inputs, service
from jobsvc.bus import Bus
from jobsvc.inputs import Inputs
from jobsvc.manager import Manager
from jobsvc.message import pack
from jobsvc.porters import Porters
from jobsvc.store import Store

Run = Callable[[Scenario], None]
CAT = {"Command": Variant("as", ["cat"])}
pytestmark = needs_root  # a porter becomes the user


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    """Its ends; the reading one is closed by whoever sends it."""
    theirs, ours = os.pipe()
    os.set_blocking(ours, False)
    try:
        yield theirs, ours
    finally:
        os.close(ours)


def here(ours: int) -> int:
    """How often this process, in which the service is, has a pipe open."""
    inode, found = os.fstat(ours).st_ino, 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            found += os.stat(f"/proc/self/fd/{fd}").st_ino == inode
        except OSError:
            continue
    return found


def is_read(ours: int) -> bool:
    """Whether anybody has the reading end."""
    try:
        return bool(os.write(ours, b"x"))
    except BrokenPipeError:
        return False


async def eventually(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.005)


def call(house: House, member: str, *fds: int, signature: str = "a{sv}", body: Any = None, **facts: Any) -> Message:
    options = {"path": service.ROOT, "interface": service.MANAGER, "destination": "org.jobsvc1"} | facts
    content = [CAT | {"StandardInput": Variant("h", 0)} if body is None else body]
    return Message(member=member, signature=signature, body=content, unix_fds=list(fds), **options)


async def sent(house: House, message: Message) -> Message:
    """The answer. Its descriptors are the service's alone from now on."""
    client, reply = house.client, asyncio.get_running_loop().create_future()
    message.serial = client.next_serial()
    client._method_return_handlers[message.serial] = lambda answer, _: reply.set_result(answer)
    socket.send_fds(client._sock, [pack(message, fds=True)], message.unix_fds)
    for fd in message.unix_fds:
        os.close(fd)
    async with asyncio.timeout(10):
        answer: Message = await reply
    return answer


async def start(house: House, fd: int) -> str:
    answer = await sent(house, call(house, "Start", fd))
    assert answer.message_type is MessageType.METHOD_RETURN, answer.body
    job_id: str = answer.body[0]
    return job_id


def given(job_id: str) -> tuple[int, int]:
    """The descriptor that is kept for a job, and whose process keeps it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as end:
        end.settimeout(10)
        end.connect(str(inputs.FOLDER / job_id))
        end.send(b"give")
        _, (fd,) = control.receive(end)
        return fd, control.peer(end)[0]


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("Stop", {"signature": "sa{sv}", "body": "0" * 16}, "Stop takes no file descriptors"),
    ("Nonsense", {}, "is not there on"),
    ("Start", {"path": "/elsewhere"}, "is not there on /elsewhere"),
    ("Ping", {"interface": "org.freedesktop.DBus.Peer", "signature": ""}, "Ping takes no file descriptors"),
    ("Start", {"body": CAT}, "a file descriptor came that no key names"),
    ("Start", {"body": CAT | {"StandardInput": Variant("s", "x")}}, "must be a file descriptor"),
    ("Start", {"body": CAT | {"StandardInput": Variant("u", 0)}}, "must be a file descriptor"),
    ("Start", {"body": {"Nonsense": Variant("h", 0)}}, "a file descriptor came that no key names"),
]


@pytest.mark.parametrize(("member", "facts", "why"), REFUSED)
def test_what_takes_none_gets_none(house: Run, member: str, facts: dict[str, Any], why: str) -> None:
    async def scenario(house: House) -> None:
        with pipe() as (theirs, ours):
            message = call(house, member, theirs, **facts)
            message.body = [] if message.signature == "" else message.body
            if message.signature == "sa{sv}":
                message.body = [message.body[0], {}]
            answer = await sent(house, message)
            assert answer.message_type is MessageType.ERROR
            assert why in answer.body[0]
            await eventually(lambda: not is_read(ours))
            assert here(ours) == 1
            assert await house.call("Count", "a{sv}", {}) == [{}]

    house(scenario)


def test_signals_with_descriptors_disturb_nobody(house: Run) -> None:
    async def scenario(house: House) -> None:
        public = house.door._bus
        with pipe() as (theirs, ours):
            for _ in range(20):
                signal_ = Message.new_signal("/", "a.b", "Changed", "hh", [0, 1], [theirs, theirs])
                signal_.destination = public.unique_name
                await house.client.send(signal_)
                house.client.tell("org.jobsvc1", service.ROOT, f"{service.MANAGER}.Count", "a{sv}", ({},))
            os.close(theirs)
            assert await house.call("Count", "a{sv}", {}) == [{}]
            await eventually(lambda: not is_read(ours))
            assert here(ours) == 1

    house(scenario)


def test_a_socket_that_lingers_holds_nobody_up(house: Run) -> None:
    """Its last reference goes with the message: whoever drops it waits for the peer."""

    async def scenario(house: House) -> None:
        use_loopback()
        listener = socket.create_server(("127.0.0.1", 0))
        await house.call("Count", "a{sv}", {})
        for _ in range(3):
            lingers = socket.create_connection(listener.getsockname())
            deaf, _ = listener.accept()
            lingers.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 1000))
            lingers.setblocking(False)
            with pytest.raises(BlockingIOError):
                while True:
                    lingers.send(b"x" * 100_000)
            answer = await sent(house, call(house, "Stop", lingers.detach(), signature="s", body="x"))
            assert answer.body == ["Stop takes no file descriptors"]
            deaf.close()
        listener.close()

    house(scenario)


def test_an_input_is_kept_elsewhere_until_it_is_not_wanted(house: Run) -> None:
    async def scenario(house: House) -> None:
        with pipe() as (theirs, ours):
            job_id = await start(house, theirs)
            os.write(ours, b"hello")
            assert here(ours) == 1
            fd, pid = given(job_id)
            assert pid != os.getpid()
            assert os.read(fd, 9) == b"hello"
            os.close(fd)
            assert house.manager.get(job_id).state == "queued"
            await house.call("Stop", "sa{sv}", job_id, {})
            await eventually(lambda: not is_read(ours))
            assert not any(inputs.FOLDER.iterdir())

    house(scenario)


def test_what_was_not_accepted_is_not_kept(house: Run) -> None:
    async def scenario(house: House) -> None:
        with pipe() as (theirs, ours):
            await sent(
                house,
                call(house, "Start", theirs, body=CAT | {"StandardInput": Variant("h", 0), "CPU": Variant("s", "")}),
            )
            await eventually(lambda: not is_read(ours))
        once = CAT | {"StandardInput": Variant("h", 0), "RequestId": Variant("s", "once")}
        with pipe() as (theirs, first):
            (job_id, _) = (await sent(house, call(house, "Start", theirs, body=once))).body
            with pipe() as (theirs, again):
                assert (await sent(house, call(house, "Start", theirs, body=once))).body[0] == job_id
                await eventually(lambda: not is_read(again))
            assert is_read(first)
            dry = CAT | {"StandardInput": Variant("h", 0), "DryRun": Variant("b", True)}
            with pipe() as (theirs, third):
                assert (await sent(house, call(house, "Start", theirs, body=dry))).body == ["", "/"]
                await eventually(lambda: not is_read(third))
        assert [path.name for path in inputs.FOLDER.iterdir()] == [job_id]

    house(scenario)


def test_a_user_has_so_many_inputs_and_no_more(house: Run) -> None:
    async def scenario(house: House) -> None:
        pretend(house)
        house.manager.config = house.authority.config = config(house, 2)
        with pipe() as (one, first), pipe() as (two, second), pipe() as (three, third):
            jobs = [await start(house, fd) for fd in (one, two)]
            answer = await sent(house, call(house, "Start", three))
            assert answer.error_name == "org.jobsvc1.Error.Quota"
            assert "MaxInputsPerUser=2 is reached" in answer.body[0]
            await eventually(lambda: not is_read(third))
            assert (is_read(first), is_read(second)) == (True, True)
            pid = keeper(jobs[0])
            assert "Uid:\t0\t4242\t0\t4242\n" in Path(f"/proc/{pid}/status").read_text()
            await house.call("Stop", "sa{sv}", jobs[0], {})
            await eventually(lambda: not is_read(first))
            with pipe() as (four, _):
                await eventually(lambda: house.manager.inputs._porters.number(4242) < 2)
                await start(house, four)
            async with another(house) as ask:
                assert await ask("Count", "a{sv}", {}) == [{"queued": 2, "stopped": 1}]

    house(scenario)


def keeper(job_id: str) -> int:
    fd, pid = given(job_id)
    os.close(fd)
    return pid


def config(house: House, number: int) -> Any:
    from dataclasses import replace

    return replace(house.manager.config, max_inputs_per_user=number)


def test_an_input_outlives_the_service(house: Run, tmp_path: Path) -> None:
    async def scenario(house: House) -> None:
        with pipe() as (one, first), pipe() as (two, second), pipe() as (three, third):
            kept, killed, over = [await start(house, fd) for fd in (one, two, three)]
            pid = keeper(killed)
            os.kill(pid, signal.SIGKILL)
            await eventually(lambda: not is_read(second))
            old = house.manager
            old.commits.flush()
            store = Store(tmp_path / "jobs.db")
            porters = Porters(old.launcher)
            new = Manager(old.config, store, old.systemd, old.launcher, old.events, Inputs(porters))
            new.maintenance = True
            gone = store.get(over)
            assert gone
            store.remove([over], 1)
            await new.reconcile()
            assert new.get(kept).state == "queued"
            assert new.get(killed).state == "stopped"
            assert "the process that kept it has ended" in (new.get(killed).run.phase.reason)  # type: ignore[union-attr]
            await eventually(lambda: not is_read(third))
            assert is_read(first)
            await eventually(lambda: porters.number(0) == 1)
            assert [path.name for path in inputs.FOLDER.iterdir()] == [kept]
            await new.close()
            store.close()
            porters.close()

    house(scenario)


def test_without_a_launcher_messages_wait_and_nothing_else(house: Run) -> None:
    async def scenario(house: House) -> None:
        launcher, porters = house.manager.launcher, house.manager.inputs._porters
        await eventually(lambda: porters._spare is not None and porters._spare.done())
        real, launcher.porter = launcher.porter, gone  # type: ignore[method-assign]
        os.kill(launcher.porters[-1].pid, signal.SIGKILL)  # type: ignore[attr-defined]
        with pipe() as (theirs, ours):
            asking = asyncio.create_task(sent(house, call(house, "Stop", theirs, signature="s", body="x")))
            await asyncio.sleep(0.3)
            assert not asking.done()
            launcher.porter = real  # type: ignore[method-assign]
            assert (await asking).body == ["Stop takes no file descriptors"]
            await eventually(lambda: not is_read(ours))

    house(scenario)


async def gone(channel: int) -> int:
    raise OSError("it went away")


def test_an_answer_brings_one_only_where_it_was_asked_for(address: str) -> None:
    async def scenario() -> None:
        server, client = await Bus(address, fds=True).open(), await Bus(address, fds=True).open()
        with pipe() as (theirs, ours):

            def answer(call: Any) -> None:
                server.send(Message.new_method_return(call, "h", [0], [theirs]))

            server.on_call = answer
            assert await client.ask(server.unique_name, "/", "a.b.Get") == [0]
            assert here(ours) == 2
            fd = await client.ask_fd(server.unique_name, "/", "a.b.Get", "", ())
            assert here(ours) == 3
            os.close(fd)
            os.close(theirs)
        server.disconnect()
        client.disconnect()

    asyncio.run(scenario())
