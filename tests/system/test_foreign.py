"""What alice hands over hangs, fails or lies wherever it is touched: nothing of that is anybody's but hers."""

from collections.abc import Iterator
from typing import Any

import pytest
from foreign import acting, assert_no_more, census, mains, nothing_changes_for_bob, restart, watched
from story import ended, in_state, jobctl, service_log, start, status

from machine.nspawn import Machine

STOP_WITHIN = 30.0  # seconds beyond TimeoutStopSec=: 10 for what SIGKILL does not end, 5 for its last output


@pytest.fixture(autouse=True)
def nothing_left(machine: Machine) -> Iterator[None]:
    with watched(machine):
        yield


def standard_input(kind: str, rules: list[str], command: list[str], hold: bool) -> Iterator[Any]:
    """Jobs of alice's with this as their standard input; then they are stopped; then the thing is ended."""
    from hostile import fuse, things

    mount = fuse.private(*rules) if kind == "fuse" else None
    fd = mount.open() if mount else things.THINGS[kind]()
    bus = Bus()  # noqa: F821
    spec = {"StandardInput": ("h", fd), "Hold": ("b", hold), "TimeoutStopUSec": ("t", 1_000_000)}
    jobs = [bus.start(*command, **spec) for _ in range(3)]
    if not mount:
        os.close(fd)  # noqa: F821 - only who closes it last has to wait
    yield jobs
    yield [bus.refused("Stop", "sa{sv}", job, {}) for job in jobs]
    if mount:
        mount.abort()
    yield None


NEVER_FLUSHED = ["FLUSH=never,-dbus-daemon"]
# A descriptor, its file system, what the job does with it, and whether it is held.
INPUTS = {
    "fuse, held": ("fuse", NEVER_FLUSHED, ["true"], True),
    "fuse, run": ("fuse", NEVER_FLUSHED, ["sleep", "600"], False),
    "fuse, ends": ("fuse", NEVER_FLUSHED, ["true"], False),
    "lingers, held": ("lingering socket", [], ["true"], True),
    "lingers, run": ("lingering socket", [], ["sleep", "600"], False),
}


@pytest.mark.parametrize("what", INPUTS)
def test_standard_input_that_hangs_who_closes_it(machine: Machine, what: str) -> None:
    before = mains(census(machine))
    with acting(machine, standard_input, *INPUTS[what]) as alice:
        with nothing_changes_for_bob(machine):
            jobs = alice.next()
            alice.next()
            for job in jobs:
                ended(machine, job, timeout=30)
        assert mains(census(machine)) == before
        restart(machine)
        with nothing_changes_for_bob(machine):
            assert jobctl(machine, "run", "--", "echo", "again", timeout=30).stdout == b"again\n"
        restart(machine, "restart", "jobsvc-launcher.service")
        alice.next()


def with_any_message(rules: list[str]) -> Iterator[Any]:
    """A descriptor with every kind of call, and with signals to each of the service's connections."""
    import jeepney

    from hostile import fuse

    mount = fuse.private(*rules)
    fd = mount.open()
    bus = Bus()  # noqa: F821
    for member, of, path in (
        ("Ping", "org.freedesktop.DBus.Peer", ROOT),  # noqa: F821
        ("Ping", "org.freedesktop.DBus.Peer", "/"),
        ("Introspect", "org.freedesktop.DBus.Introspectable", ROOT),  # noqa: F821
        ("GetAll", "org.freedesktop.DBus.Properties", ROOT),  # noqa: F821
        ("List", MANAGER, ROOT),  # noqa: F821
        ("Status", MANAGER, ROOT),  # noqa: F821
        ("Start", MANAGER, ROOT),  # noqa: F821
        ("Nothing", MANAGER, ROOT),  # noqa: F821
        ("Nothing", "no.such.Interface", "/no/such/path"),
    ):
        for flags in (0, 1):
            serial = bus.send(member, "ah", [fd] * 3, path=path, of=of, flags=flags)
            if not flags:
                with contextlib.suppress(Refused, TimeoutError):  # noqa: F821
                    bus.reply(serial, 5)
    daemon = bus.connection
    peer = Proxy(message_bus, daemon, timeout=10)  # noqa: F821
    main = int(peer.GetConnectionUnixProcessID(NAME)[0])  # noqa: F821
    names = [name for name in peer.ListNames()[0] if name.startswith(":")]
    ours = [name for name in names if int(peer.GetConnectionUnixProcessID(name)[0]) == main]
    for name in ours:
        for interface, member in (
            ("org.freedesktop.systemd1.Manager", "JobRemoved"),
            ("org.freedesktop.DBus", "NameOwnerChanged"),
            ("no.such.Interface", "Nothing"),
        ):
            emitter = jeepney.DBusAddress(ROOT, bus_name=name, interface=interface)  # noqa: F821
            message = jeepney.new_signal(emitter, member, "ah", ([fd] * 3,))
            message.header.fields[jeepney.HeaderFields.destination] = name
            daemon.send(message, serial=next(daemon.outgoing_serial))
    peer.GetId()  # after all of that
    yield len(ours)
    mount.abort()
    yield None


def test_descriptors_with_whatever_is_sent(machine: Machine) -> None:
    before = mains(census(machine))
    with acting(machine, with_any_message, NEVER_FLUSHED) as alice:
        with nothing_changes_for_bob(machine):
            assert alice.next() > 0
        assert mains(census(machine)) == before
        restart(machine)
        with nothing_changes_for_bob(machine):
            alice.next()


def held_pipes(number: int) -> Iterator[Any]:
    """Pipes that no call takes, whose other end is read into a page that never comes: close() waits for that."""
    import threading

    from hostile import fuse, things

    mount = fuse.private("READ=never")
    bus = Bus()  # noqa: F821
    ends: list[int] = []
    for each in range(number):
        fd = mount.open(each)
        ours, theirs = os.pipe()  # noqa: F821
        os.write(theirs, b"x")  # noqa: F821
        if not os.fork():  # noqa: F821
            for end in (*ends, theirs):
                os.close(end)  # noqa: F821
            things.Page(fd, writable=True).read(ours)
            os._exit(0)  # noqa: F821
        assert mount.told(20)
        os.close(ours)  # noqa: F821
        ends.append(theirs)
    of = "org.freedesktop.DBus.Peer"
    for _ in range(300):  # to be read before, so that no end is ours any more when its message is read
        bus.send("GetAll", "s", "", of="org.freedesktop.DBus.Properties", flags=1)
    for end in ends:
        bus.send("Ping", "h", end, of=of, flags=1)
    for end in ends:
        threading.Thread(target=os.close, args=(end,), daemon=True).start()  # noqa: F821
    yield None
    yield bus.refused("Ping", of=of)
    mount.abort()
    yield None


def test_what_hangs_and_nobody_wants(machine: Machine) -> None:
    """However many there are: nothing waits for them, and one process of hers does."""
    before = census(machine)
    with acting(machine, held_pipes, 6) as alice:
        with nothing_changes_for_bob(machine):
            alice.next()
            assert alice.next()[0] == ""
        now = census(machine)
        assert mains(now) == mains(before)
        assert now["jobsvc-launcher"]["processes"] <= before["jobsvc-launcher"]["processes"] + 1, (before, now)
        alice.next()


def test_an_error_of_close_is_nobodys_end(machine: Machine) -> None:
    """FLUSH fails with EIO; what bob has waiting keeps its input, also over a crash of the service."""
    words = ("--hold", "-i", "--", "cat")
    first, second = (start(machine, *words, user="bob", input=b"kept\n") for _ in range(2))
    before = mains(census(machine))
    for command, hold in ((["true"], True), (["true"], False), (["sleep", "600"], False)):
        with acting(machine, standard_input, "fuse", ["FLUSH=EIO,-dbus-daemon"], command, hold) as alice:
            with nothing_changes_for_bob(machine):
                jobs = alice.next()
                alice.next()
                for job in jobs:
                    ended(machine, job, timeout=30)
            alice.next()
    with acting(machine, with_any_message, ["FLUSH=EIO,-dbus-daemon"]) as alice:
        alice.next()
    assert mains(census(machine)) == before
    jobctl(machine, "release", first, user="bob")
    assert ended(machine, first, user="bob")["result"] == "success"
    machine.run("systemctl", "kill", "-s", "KILL", "jobsvc.service")
    machine.wait_until(lambda: status(machine, second, user="bob")["state"] == "queued")
    restart(machine)
    jobctl(machine, "release", second, user="bob")
    assert ended(machine, second, user="bob")["result"] == "success"
    for job in (first, second):
        assert jobctl(machine, "logs", job, user="bob").stdout == b"kept\n"


IN_THE_JOB = """import os, time
from hostile import things
page = things.Page(0)
print('on', flush=True)
time.sleep(1)  # until that is taken
{0}"""
# Its exec hangs when it closes a descriptor: with Linux 6.18 whoever reads /proc/PID/stat of it hangs as well, and so
# does `ps`, also on the host that the machine runs on. So it is not for long.
EXEC = """import os
from hostile import things
print('on', flush=True)
open('/proc/self/comm', 'w').write('evil')
os.dup(0)
os.execv('/bin/sleep', ['sleep', '600'])"""
WRITERS = {
    "exec": EXEC,
    "main": IN_THE_JOB.format("page.write(1)"),
    "a child": IN_THE_JOB.format("os.fork() or page.write(1)\ntime.sleep(600)"),
    "outside": "import time; print('on', flush=True); time.sleep(600)",
}


ONE = pytest.mark.one_suite
EACH = [pytest.param(name, marks=ONE if name in ("exec", "a child") else ()) for name in WRITERS]


def pipe_held(writer: str, source: str, limit: int) -> Iterator[Any]:
    """The pipe that is a job's standard output is locked by a write of a page that never comes; or its exec hangs."""
    from hostile import fuse, things

    bus = Bus()  # noqa: F821
    spec = {"TimeoutStopUSec": ("t", 2_000_000), "Environment": ("as", ["PYTHONPATH=/opt"])}
    if limit:
        spec["RuntimeMaxUSec"] = ("t", limit)
    command = ("python3", "-B", "-c", source)
    if writer == "outside":  # before there is a user namespace, out of which it could not be opened
        job = bus.start(*command, **spec)
        while b"on" not in bus.logs(job):
            time.sleep(0.05)  # noqa: F821
        out = os.open(f"/proc/{bus.status(job)['MainPID']}/fd/1", os.O_WRONLY)  # noqa: F821
    mount = fuse.private("READ=never", "FLUSH=never,+evil", lifetime=60)
    fd = mount.open()
    if writer != "outside":
        job = bus.start(*command, **spec, StandardInput=("h", fd))
    else:
        page = things.Page(fd)
        if not os.fork():  # noqa: F821
            page.write(out)
            os._exit(0)  # noqa: F821
    assert mount.told(20)
    yield job
    mount.abort()
    yield None


def assert_over(machine: Machine, job: str, within: float, result: str) -> None:
    told: dict[str, Any] = {}

    def over() -> bool:
        told.update(status(machine, job))
        return told["state"] in ("completed", "failed", "stopped")

    machine.wait_until(over, timeout=within, what="the job to be over")
    assert told["result"] == result, told
    assert jobctl(machine, "run", "--", "true", timeout=30).returncode == 0


def assert_read(machine: Machine, job: str) -> None:
    done = jobctl(machine, "run", "--", "echo", "free", timeout=30)
    assert (done.stdout, done.stderr) == (b"free\n", b"")
    assert jobctl(machine, "logs", job, timeout=30).stdout.startswith(b"on\n")


@pytest.mark.parametrize("writer", EACH)
def test_a_run_time_holds_though_its_pipe_is_held(machine: Machine, writer: str) -> None:
    with acting(machine, pipe_held, writer, WRITERS[writer], 4_000_000) as alice:
        job = alice.next()
        with nothing_changes_for_bob(machine):
            assert_over(machine, job, 4 + 2 + STOP_WITHIN, "timeout")
            if writer != "exec":  # journald reads /proc of who has written, and hangs with it
                assert_read(machine, job)
        alice.next()
    assert status(machine, job)["result"] == "timeout"


@pytest.mark.parametrize("writer", EACH)
def test_a_stop_ends_though_the_pipe_is_held(machine: Machine, writer: str) -> None:
    with acting(machine, pipe_held, writer, WRITERS[writer], 0) as alice:
        job = alice.next()
        with nothing_changes_for_bob(machine):
            assert jobctl(machine, "stop", "--no-block", job, timeout=10).returncode in (0, 2)
            assert_over(machine, job, 2 + STOP_WITHIN, "stopped")
            if writer != "exec":
                assert_read(machine, job)
        restart(machine)
        assert status(machine, job)["result"] == "stopped"
        alice.next()
    assert status(machine, job)["result"] == "stopped"


def readers(job: str, number: int) -> Iterator[Any]:
    """What Logs gave is read into pages that never come: the pipe is locked."""
    from hostile import fuse, things

    bus = Bus()  # noqa: F821
    mount = fuse.private("READ=never")
    for each in range(number):
        fd = mount.open(each)  # who waits for a page that was asked for already is not told of
        pipe = bus.logs_fd(job, Follow=("b", True))
        if not os.fork():  # noqa: F821
            things.Page(fd, writable=True).read(pipe.fileno())
            os._exit(0)  # noqa: F821
        assert mount.told(20)
    yield None
    mount.abort()
    yield None


def test_readers_that_lock_what_they_read_from(machine: Machine) -> None:
    script = "echo on; while sleep 0.1; do echo more; done"
    job = start(machine, "--", "sh", "-c", script)
    before = mains(census(machine))
    with acting(machine, readers, job, 20) as alice:
        with nothing_changes_for_bob(machine):
            alice.next()
            follower = machine.run("timeout", "3", "jobctl", "logs", "-f", job, user="carol", check=False)
            assert b"more\n" in follower.stdout, follower
        assert mains(census(machine)) == before
        jobctl(machine, "stop", job, timeout=30)
        assert_over(machine, job, STOP_WITHIN, "stopped")
        restart(machine)
        alice.next()


def typed_rights(rules: list[str]) -> Iterator[Any]:
    """A job in a terminal; descriptors come with what is typed, and with nothing."""
    import array

    from hostile import fuse, things

    mount = fuse.private(*rules)
    fds = [mount.open(), *(make() for name, make in things.THINGS.items() if "terminal" not in name)]
    bus = Bus()  # noqa: F821
    keys = {"Pty": ("b", True), "TimeoutStopUSec": ("t", 1_000_000)}
    job = bus.start("sh", "-c", "echo on; sleep 600", **keys)
    while b"on" not in bus.logs(job):
        time.sleep(0.05)  # noqa: F821
    sent = 0
    for packet in (b"i", b"ix\n", b"w\x01", b"w\0\0\0\0", b"?", b"", b"i" + b"y" * 3000 + b"\n"):
        client = bus.call("Attach", "sa{sv}", job, {}).to_socket()
        client.settimeout(2)
        with contextlib.suppress(OSError):  # noqa: F821
            for number in range(0, len(fds), 8):
                rights = array.array("i", fds[number : number + 8])
                client.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])  # noqa: F821
                sent += 1
        client.detach()  # left open, and never read
    yield [job, sent]
    yield bus.refused("Stop", "sa{sv}", job, {})
    mount.abort()
    yield None


@pytest.mark.parametrize("answer", ["never", "EIO"])
def test_descriptors_with_what_is_typed(machine: Machine, answer: str) -> None:
    before = mains(census(machine))
    with acting(machine, typed_rights, [f"FLUSH={answer},-dbus-daemon"]) as alice:
        with nothing_changes_for_bob(machine):
            job, sent = alice.next()
            assert sent
            alice.next()
            assert_over_terminal(machine, job)
        assert mains(census(machine)) == before
        restart(machine)
        alice.next()


def assert_over_terminal(machine: Machine, job: str) -> None:
    told = in_state(machine, job, "stopped", "completed", "failed")
    assert told["result"] in ("stopped", "success"), told


def everything(hold: bool) -> Iterator[Any]:
    """Each kind of thing as the standard input of a job that reads it, and of one that does not."""
    from hostile import things

    bus = Bus()  # noqa: F821
    jobs = []
    commands = [["true"], ["timeout", "0.2", "head", "-c", "9"]]
    for make in things.THINGS.values():
        for command in commands[:1] if hold else commands:  # MaxInputsPerUser= of them can be held
            fd = make()
            spec = {"StandardInput": ("h", fd), "Hold": ("b", hold), "TimeoutStopUSec": ("t", 1_000_000)}
            jobs.append(bus.start(*command, **spec))
            os.close(fd)  # noqa: F821
    if hold:
        bus.call("StopMany", "asa{sv}", jobs, {})
    yield jobs
    yield {job: one["Result"] for job, one in bus.until_ended(*jobs, timeout=120).items()}


@pytest.mark.parametrize("hold", [False, True])
def test_every_kind_of_thing_as_standard_input(machine: Machine, hold: bool) -> None:
    before = census(machine)
    with acting(machine, everything, hold) as alice, nothing_changes_for_bob(machine):
        alice.next()
        ends = alice.next()
        assert set(ends.values()) <= ({"canceled"} if hold else {"success", "exit-code"}), ends
        assert mains(census(machine)) == mains(before)
    assert "Traceback" not in service_log(machine)
    assert_no_more(machine, before)
