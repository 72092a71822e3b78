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


def test_one_users_flood_pushes_out_nothing_of_anothers(machine: Machine) -> None:
    """The journal has room for what all users together may write in a day, and for what is around it."""
    machine.write(SMALL, "[Journal]\nSystemMaxUse=64M\nSystemMaxFileSize=4M\n")
    machine.write(CONF, "[Manager]\nMaxOutputPerUser=24M\nMaxRunningPerUser=1\n")
    systemctl(machine, "restart", JOURNALD)
    systemctl(machine, "reload", "jobsvc.service")
    lines = b"".join(b"%d\n" % number for number in range(1, 150_001))
    try:
        rotate = ("journalctl", "--namespace=jobsvc", "--rotate")
        machine.run(*rotate, "--vacuum-size=1M")  # what other tests left is larger
        hers = start(machine, "--", "seq", "150000")
        assert ended(machine, hers)["result"] == "success"
        machine.run(*rotate)  # what is not written to any more is what goes first
        floods = [start(machine, "--", "head", "-c", "20M", "/dev/urandom", user="bob") for _ in range(10)]
        told = [ended(machine, job, user="bob") for job in floods]
        assert {one["result"] for one in told} == {"success"}
        outputs = [one["output"] for one in told]
        assert sum(one["stdout_bytes"] for one in outputs) == 10 * 20 * 1024**2
        done = jobctl(machine, "logs", hers)
        assert (done.returncode, done.stdout == lines, done.stderr) == (0, True, b"")
        kept = sum(one["stdout_bytes"] - one["missing_bytes"] for one in outputs)
        assert kept <= 24 * 1024**2
    finally:
        machine.run("rm", "-f", SMALL, CONF)
        systemctl(machine, "restart", JOURNALD)
        systemctl(machine, "reload", "jobsvc.service")
