"""What follows the end of a job: OnFinish= and mail, as the job's user, once, whatever happens to the service."""

import json
from collections.abc import Iterator

import pytest
from story import assert_nothing_left, ended, in_state, jobctl, service, start, status

from machine import scale
from machine.nspawn import Machine

OURS = "/etc/jobsvc/jobsvc.conf.d/60-story.conf"
HOOK = "/usr/local/bin/on-finish"
TELL = """#!/bin/sh
{ id -un; env | grep '^JOBSVC_' | sort; } | tr '\\n' ' ' > "/var/tmp/told/$JOBSVC_FINISHED_ID-$JOBSVC_FINISHED_RUN-$$"
"""
SENDMAIL = "/usr/sbin/sendmail"
MAILER = """#!/bin/sh
{ id -un; echo "$@"; cat; } > "/var/tmp/told/.mail-$$" && mv "/var/tmp/told/.mail-$$" "/var/tmp/told/mail-$$"
"""


@pytest.fixture(autouse=True)
def hook(machine: Machine) -> Iterator[None]:
    """The configuration has a hook that notes what it was told, in a file a call."""
    machine.run("install", "-d", "-m", "1777", "/var/tmp/told")
    machine.write(HOOK, TELL, mode=0o755)
    machine.write(OURS, f"[Manager]\nOnFinish={HOOK}\n")
    machine.run("systemctl", "reload", "jobsvc")
    yield
    machine.run("rm", "-rf", OURS, HOOK, SENDMAIL, "/var/tmp/told")
    machine.run("systemctl", "reload", "jobsvc")
    assert_nothing_left(machine)


def told(machine: Machine, pattern: str) -> list[str]:
    """What the hooks of these files were told, and their mails."""
    script = f"cd /var/tmp/told; for file in {pattern}; do [ ! -s $file ] || {{ cat $file; printf '\\0'; }}; done"
    return machine.run("sh", "-c", script).stdout.decode().split("\0")[:-1]


def hook_of(machine: Machine, job: str) -> str:
    """The id of the newest hook, which has to be that of this job."""
    (newest,) = jobctl(machine, "-o", "jsonl", "list", "--name", "on-finish", "--limit", "1").stdout.splitlines()
    told = json.loads(newest)
    assert told["hook_of"] == job
    return str(told["id"])


def test_the_hook_runs_as_the_jobs_user_and_knows_how_it_went(machine: Machine) -> None:
    jobctl(machine, "run", "--name", "my build", "--", "sh", "-c", "exit 3")
    failed = status(machine, "my build")["id"]
    killed = start(machine, "--uid", "bob", "-d", "/", "--", "sh", "-c", "kill -9 $$", user="dave")
    missing = start(machine, "--", "/no/such/program")
    (one,) = machine.wait_until(lambda: told(machine, f"{failed}-*"))
    for fact in ("ID=" + failed, "RUN=1", "NAME=my build", "OWNER=alice", "USER=alice", "QUEUE=default"):
        assert f" JOBSVC_FINISHED_{fact} " in one
    for fact in ("STATE=failed", "RESULT=exit-code", "EXIT_CODE=3"):
        assert f" JOBSVC_FINISHED_{fact} " in one
    assert one.startswith("alice ")
    assert "SIGNAL" not in one
    (one,) = machine.wait_until(lambda: told(machine, f"{killed}-*"))
    assert one.startswith("bob ")
    assert " JOBSVC_FINISHED_OWNER=dave " in one
    assert " JOBSVC_FINISHED_SIGNAL=9 " in one
    (one,) = machine.wait_until(lambda: told(machine, f"{missing}-*"))
    assert " JOBSVC_FINISHED_RESULT=start-failed " in one


def test_nothing_follows_a_hook_nor_what_never_began(machine: Machine) -> None:
    machine.write(OURS, f"[Manager]\nMaxRunning=1\nOnFinish={HOOK}\n")
    machine.run("systemctl", "reload", "jobsvc")
    stopped = start(machine, "--", "sleep", "600")
    in_state(machine, stopped, "running")
    job = start(machine, "--", "true")
    assert jobctl(machine, "stop", job).returncode == 0
    assert jobctl(machine, "stop", stopped).returncode == 0
    (one,) = machine.wait_until(lambda: told(machine, f"{stopped}-*"))
    assert " JOBSVC_FINISHED_RESULT=stopped " in one
    assert status(machine)["id"] == job  # @ is one's own last job, and no hook
    hook = ended(machine, hook_of(machine, stopped))
    assert (hook["name"], hook["result"]) == ("on-finish", "success")
    assert len(told(machine, f"{hook['id']}-*")) == 0
    assert len(told(machine, f"{job}-*")) == 0
    assert jobctl(machine, "restart", hook["id"]).returncode == 0
    assert ended(machine, hook["id"])["run"] == 2
    assert len(told(machine, f"{stopped}-*")) == 2
    assert len(told(machine, f"{hook['id']}-*")) == 0


def test_what_a_hook_submits_has_no_hook_either(machine: Machine) -> None:
    machine.write(HOOK, TELL + "jobctl start -q --name more -- true\n", mode=0o755)
    first = start(machine, "--", "true")
    machine.wait_until(lambda: told(machine, f"{first}-*"))
    ended(machine, hook_of(machine, first))
    (newest,) = jobctl(machine, "-o", "jsonl", "list", "--name", "more").stdout.splitlines()
    more = ended(machine, json.loads(newest)["id"])
    assert (more["result"], more["hook_of"]) == ("success", first)
    machine.write(HOOK, TELL, mode=0o755)
    last = start(machine, "--", "true")
    machine.wait_until(lambda: told(machine, f"{last}-*"))
    assert len(told(machine, f"{more['id']}-*")) == 0


def test_scope_of_ones_own_manager_is_no_hook(machine: Machine) -> None:
    """Below systemd --user a scope may have any name, that of a hook's as well."""
    machine.write(HOOK, TELL + "exec sleep 600\n", mode=0o755)
    first = start(machine, "--", "true")
    machine.wait_until(lambda: told(machine, f"{first}-*"))
    hook = hook_of(machine, first)
    in_state(machine, hook, "running")
    machine.write(HOOK, TELL, mode=0o755)
    scope = ("systemd-run", "--user", "--scope", "--quiet", f"--unit=jobsvc-{hook}-1.scope")
    done = machine.run(*scope, "--", "jobctl", "start", "-q", "--name", "sly", "--", "true", user="alice", login=True)
    sly = ended(machine, done.stdout.decode().strip())
    assert sly["hook_of"] is None
    machine.wait_until(lambda: told(machine, f"{sly['id']}-*"), what="the hook of what only looks like one")
    assert jobctl(machine, "stop", hook).returncode == 0
    machine.run("loginctl", "terminate-user", "alice", check=False)


@pytest.mark.scaled
def test_each_job_has_its_hook_once_however_often_the_service_is_killed(machine: Machine) -> None:
    jobs = []
    for _ in range(scale.times(1, 6)):
        jobs += [start(machine, "--", "sleep", f"{0.2 * number:.1f}") for number in range(12)]
        for _ in range(6):
            service(machine, "kill")
    for job in jobs:
        ended(machine, job)
    machine.wait_until(lambda: all(told(machine, f"{job}-*") for job in jobs), what="all hooks")
    machine.wait_until(lambda: not jobctl(machine, "-o", "jsonl", "list", "--state", "queued,running,starting").stdout)
    assert [len(told(machine, f"{job}-*")) for job in jobs] == [1] * len(jobs)


def test_mail_is_sent_as_the_user_to_the_owner_if_it_was_wanted(machine: Machine) -> None:
    refused = jobctl(machine, "start", "-p", "Notify=mail", "--", "true")
    assert refused.returncode == 2
    assert b"/usr/sbin/sendmail" in refused.stderr
    machine.write(SENDMAIL, MAILER, mode=0o755)
    wanted = {"mail": "exit 0", "failure-mail": "exit 0", "no": "exit 4"}
    for notify, script in wanted.items():
        jobctl(machine, "run", "--name", f"one-{notify}", "-p", f"Notify={notify}", "--", "sh", "-c", script)
    jobctl(machine, "run", "--name", "bad", "-p", "Notify=failure-mail", "--", "sh", "-c", "exit 4")
    machine.wait_until(lambda: len(told(machine, "mail-*")) == 2)
    first, second = sorted(told(machine, "mail-*"), key=lambda mail: "bad" in mail)
    assert first.startswith("alice\n-oi -t\nTo: alice\nSubject: one-mail on ")
    assert ": success\n" in first
    assert "Auto-Submitted: auto-generated" in first
    assert "ended as failed: exit-code, exit code 4" in second
    assert f"jobctl logs {status(machine, 'bad')['id']}" in second
