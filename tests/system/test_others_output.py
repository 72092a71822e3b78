"""What is in the journal of the jobs is nobody else's to forge, to push out, or to fill up."""

import pytest
from story import code, ended, inside, jobctl, start, systemctl

from machine.nspawn import Machine

pytestmark = pytest.mark.usefixtures("nothing_left")

CONF = "/etc/jobsvc/jobsvc.conf.d/60-story.conf"
JOURNALD = "systemd-journald@jobsvc.service"
SMALL = "/etc/systemd/journald@jobsvc.conf.d/90-story.conf"


def doors() -> dict[str, str]:
    """Whether each socket of the jobs' journal lets one in."""
    told = {}
    for name, kind in (("socket", 2), ("dev-log", 2), ("stdout", 1), ("io.systemd.journal", 1)):
        with socket.socket(socket.AF_UNIX, kind) as end:  # noqa: F821
            try:
                end.connect(f"/run/systemd/journal.jobsvc/{name}")
                told[name] = "open"
            except OSError as error:
                told[name] = str(error.strerror)
    return told


def test_only_root_writes_to_the_journal_of_the_jobs(machine: Machine) -> None:
    for user in ("alice", "carol", "dave"):
        assert set(inside(machine, doors, user=user).values()) == {"Permission denied"}
    job = start(machine, "-i", "--", "python3", "-B", "-", input=code(doors).encode())
    assert ended(machine, job)["result"] == "success"
    assert jobctl(machine, "logs", job).stdout.count(b"Permission denied") == 4
    assert inside(machine, doors, user="root")["socket"] == "open"


# Two bytes an entry, and the journal needs hundreds for each.
TRICKLE = """
import os, time
for _ in range(20_000):
    os.write(1, b"o\\n")
    os.write(2, b"e\\n")
    time.sleep(0.0005)
"""


@pytest.mark.parametrize(
    ("size", "most", "user", "floods"),
    [
        (64, 24, "bob", [["head", "-c", "20M", "/dev/urandom"]] * 10),
        (32, 6, "carol", [["python3", "-c", TRICKLE]]),
    ],
    ids=["of-bytes", "of-entries"],
)
def test_one_users_flood_pushes_out_nothing_of_anothers(
    machine: Machine, size: int, most: int, user: str, floods: list[list[str]]
) -> None:
    """The journal has room for what all users together may write in a day, and for what is around it."""
    machine.write(SMALL, f"[Journal]\nSystemMaxUse={size}M\nSystemMaxFileSize=4M\n")
    machine.write(CONF, f"[Manager]\nMaxOutputPerUser={most}M\nMaxRunningPerUser=1\n")
    systemctl(machine, "restart", JOURNALD)
    systemctl(machine, "reload", "jobsvc.service")
    lines = b"".join(b"%d\n" % number for number in range(1, 150_001))
    try:
        rotate = ("journalctl", "--namespace=jobsvc", "--rotate")
        machine.run(*rotate, "--vacuum-size=1M")  # what other tests left is larger
        # Of a user whose day is not over: tests before this one write as alice.
        hers = start(machine, "--", "seq", "150000", user="dave")
        assert ended(machine, hers, user="dave")["result"] == "success"
        machine.run(*rotate)  # what is not written to any more is what goes first
        theirs = [start(machine, "--", *flood, user=user) for flood in floods]
        told = [ended(machine, job, user=user, timeout=300) for job in theirs]
        assert {one["result"] for one in told} == {"success"}
        assert told[-1]["reason"] == "its output was cut: MaxOutputPerUser= is reached"
        done = jobctl(machine, "logs", hers, user="dave")
        assert (done.returncode, done.stdout == lines, done.stderr) == (0, True, b"")
        outputs = [one["output"] for one in told]
        kept = sum(one["stdout_bytes"] + one["stderr_bytes"] - one["missing_bytes"] for one in outputs)
        assert 0 < kept <= most * 1024**2
        quiet = start(machine, "--", "echo", "unheard", user=user)
        assert ended(machine, quiet, user=user)["output"]["missing_bytes"] == len("unheard\n")
        assert machine.run("journalctl", "--namespace=jobsvc", "-o", "cat", f"JOBSVC_ID={quiet}").stdout == b""
    finally:
        machine.run("rm", "-f", SMALL, CONF)
        systemctl(machine, "restart", JOURNALD)
        systemctl(machine, "reload", "jobsvc.service")
