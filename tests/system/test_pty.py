"""Jobs with a terminal, and who may type into it."""

from typing import Any

import pytest
from story import inside, jobctl, start

from machine.nspawn import Machine

pytestmark = pytest.mark.usefixtures("nothing_left")


def converse(shell: list[str], lines: list[str]) -> list[Any]:
    """A shell in a terminal, these lines typed one after the other as answers come; the end and the output."""
    import struct

    bus = Bus()  # noqa: F821
    keys = {"Pty": ("b", True), "TTYRows": ("u", 33), "Environment": ("as", ["PS1=> ", "TERM=xterm", "ENV="])}
    job, _ = bus.call("Start", "a{sv}", {"Command": ("as", shell), **keys})
    while bus.status(job)["State"] != "running":
        time.sleep(0.01)  # noqa: F821
    client = bus.call("Attach", "sa{sv}", job, {}).to_socket()
    client.send(b"w" + struct.pack("HH", 40, 90))
    while b"> " not in bus.logs(job):
        time.sleep(0.01)  # noqa: F821
    for text in lines:
        before = bus.logs(job).count(b"> ")
        client.send(b"i" + text.encode())
        while bus.logs(job).count(b"> ") == before and bus.status(job)["State"] == "running":
            time.sleep(0.01)  # noqa: F821
    assert client.recv(100) == b""
    end = bus.until_ended(job, timeout=20)[job]
    return [end["Result"], end.get("ExitCode"), bus.logs(job).decode()]


def test_a_conversation_with_a_shell(machine: Machine) -> None:
    typed = ["stty size; echo $TERM\n", "tty; id -un\n", "sleep 60\x03", "kill -l 2; exit 7\n"]
    result, code, text = inside(machine, converse, ["bash", "--norc", "-i"], typed)
    assert (result, code) == ("exit-code", 7)
    assert "40 90\r\nxterm\r\n" in text
    assert "/dev/pts/" in text
    assert "alice\r\n" in text


def seated() -> str:
    """A job with a terminal that waits for a line, run as alice."""
    bus = Bus()  # noqa: F821
    return str(bus.start("sh", "-c", "read a; echo $a", Pty=("b", True), User=("s", "alice")))


def test_only_who_may_execute_may_type(machine: Machine) -> None:
    mine, roots = (inside(machine, seated, user=user) for user in ("alice", "root"))
    plain = start(machine, "--", "sleep", "60")
    call = ("busctl", "call", "org.jobsvc1", "/org/jobsvc1", "org.jobsvc1.Manager", "Attach", "sa{sv}")

    def attach(job: str, user: str) -> bytes:
        done = machine.run(*call, job, "0", user=user, check=False)
        return done.stderr if done.returncode else done.stdout

    machine.wait_until(lambda: attach(mine, "alice").startswith(b"h "))
    assert b"no job" in attach(mine, "bob")
    assert b"ccess denied" in attach(mine, "carol")  # a viewer
    machine.wait_until(lambda: attach(roots, "root").startswith(b"h "))
    assert b"ccess denied" in attach(roots, "alice")  # it runs as her, but it is not hers
    assert attach(mine, "dave").startswith(b"h ")
    assert b"has no terminal" in attach(plain, "alice")
    for job, user in ((mine, "alice"), (plain, "alice"), (roots, "root")):
        assert jobctl(machine, "stop", job, user=user).returncode == 0
    assert b"has no terminal" not in attach(mine, "alice")
