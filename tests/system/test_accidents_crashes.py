"""The service is killed again and again, in whatever it does just then: no run is lost, none is run twice."""

import json
from collections import Counter
from typing import Any

import pytest
from story import code, inside, systemctl

from machine import scale
from machine.nspawn import Machine

pytestmark = pytest.mark.usefixtures("nothing_left")

KILLS = scale.times(21, 201)  # on each suite
DROP_IN = "/run/systemd/system/jobsvc.service.d/story.conf"
# Who is stopped says so, on both streams; nothing but the shell itself writes, a line at once.
SCRIPT = """\
trap 'echo bye; echo BYE >&2; exit 99' TERM
echo "$JOBSVC_ID $JOBSVC_RUN" >> ran
i=0
while [ $i -lt {lines} ]; do i=$((i+1)); echo "out {number} $i"; echo "err {number} $i" >&2; sleep 0.{pause}; done
exit {code}
"""


def kill_often(times: int, seed: int) -> None:
    """SIGKILL for each new life of the service: some while it begins, most at work; counted once it is dead of it.

    It has a third of the time to work that it takes to begin: how much it can do in a second depends on the machine.
    """
    chance = random.Random(seed)  # noqa: F821
    bus, dead, count, beginning = Bus(), None, 0, 0.3  # noqa: F821
    while count < times:
        while (pid := main_pid("jobsvc.service")) in (None, dead):  # noqa: F821
            time.sleep(0.001)  # noqa: F821
        dead, began = pid, time.monotonic()  # noqa: F821
        if count % 4:
            if not bus.owned(120):
                continue
            beginning = time.monotonic() - began  # noqa: F821
        time.sleep(chance.uniform(0, beginning / 3))  # noqa: F821
        count += killed(pid)  # noqa: F821


def submit(script: str, seed: int) -> dict[str, Any]:
    """Start, stop and restart many as long as the file is there; who gets no answer to a start asks again."""
    chance = random.Random(seed)  # noqa: F821
    bus, jobs, surely, unanswered = Bus(), {}, {}, dict.fromkeys(("StartMany", "StopMany", "RestartMany"), 0)  # noqa: F821

    def ask(member: str, signature: str, *body: Any) -> Any:
        try:
            return bus.reply(bus.send(member, signature, *body), timeout=20)
        except (Refused, TimeoutError) as error:  # noqa: F821
            unanswered[member] += 1
            if getattr(error, "name", "NoReply") not in ("NoReply", "ServiceUnknown", "Disconnected", "TimedOut"):
                raise
            return None

    while os.path.exists("going"):  # noqa: F821
        facts = [{"lines": n % 4, "pause": n % 9, "code": n % 99, "number": n} for n in range(len(jobs), len(jobs) + 6)]
        keys = [
            {
                "Command": ("as", ["sh", "-c", script.format(**one)]),
                "RequestId": ("s", f"{seed}-{os.getpid()}-{one['number']}"),  # noqa: F821
            }
            for one in facts
        ]
        while (started := ask("StartMany", "aa{sv}a{sv}", keys, {})) is None:
            pass
        for (job, _), one in zip(started, facts, strict=False):
            jobs[job], surely[job] = one, True
        latest = list(jobs)[-12:]
        stopped = chance.sample(latest, 4)
        ask("StopMany", "asa{sv}", stopped, {})
        surely.update(dict.fromkeys(stopped, False))
        again = ask("RestartMany", "asa{sv}", chance.sample(latest, 4), {}) or ()
        # Whatever was before, the last run of these comes to its own end.
        surely.update((job, True) for job, error, _ in again if not error)
    return {"jobs": jobs, "surely": surely, "unanswered": unanswered}


def faults(jobs: dict[str, Any], surely: dict[str, bool]) -> tuple[list[Any], dict[str, int]]:
    """What is not as it must be of these jobs and all their runs, and how many runs had which result."""
    bus, wrong, results = Bus(), [], {}  # noqa: F821
    last = bus.until_ended(*jobs, timeout=60)
    with open("ran") as file:
        ran = file.read().splitlines()
    for job, facts in jobs.items():
        for run in range(1, last[job]["Run"] + 1):
            told = bus.status(job, Run=("u", run))
            how = [told.get(key) for key in ("Result", "ExitCode", "Signal")]
            results[how[0]] = results.get(how[0], 0) + 1
            streams, trailer = json_output(bus.logs(job, Run=("u", run), Format=("s", "json")))  # noqa: F821
            out, err = ([f"{word} {facts['number']} {i + 1}" for i in range(facts["lines"])] for word in ("out", "err"))
            wrote = [streams[name].decode().splitlines() for name in ("stdout", "stderr")]
            if wrote[1][-2:-1] == ["Terminated"]:  # the shell of its sleep
                del wrote[1][-2]
            begun = ran.count(f"{job} {run}")
            if how[1] == 99:
                good = wrote[0][-1:] == ["bye"] and wrote[1][-1:] == ["BYE"] and begun <= 1
                good = good and wrote[0][:-1] == out[: len(wrote[0]) - 1] and wrote[1][:-1] == err[: len(wrote[1]) - 1]
                good = good and how[0] == "stopped"
            elif how[1] is None:
                good = wrote == [[], []] and begun == 0 and how[0] in ("stopped", "canceled")
            else:
                own = "exit-code" if facts["code"] else "success"
                good = how[1] == facts["code"] and wrote == [out, err] and begun == 1 and how[0] in (own, "stopped")
            if run == last[job]["Run"] and surely[job]:
                good = good and how[0] in ("success", "exit-code")
            if not good or trailer["missing"]:
                wrong.append([job, run, facts, surely[job], how, told.get("Reason"), wrote, begun, trailer["missing"]])
    if len(ran) != len(set(ran)):
        wrong.append(["run twice", [one for one in set(ran) if ran.count(one) > 1]])
    return wrong, results


@pytest.mark.scaled
def test_a_hundred_crashes_in_the_middle_of_starts_stops_and_restarts_lose_no_run(machine: Machine) -> None:
    machine.write(DROP_IN, "[Service]\nRestartSec=1ms\n")
    systemctl(machine, "daemon-reload")
    machine.run("sh", "-c", "rm -f ran; touch going", user="alice")
    began = machine.run("date", "+%s.%N").stdout.decode().strip()
    argv = ("timeout", "700", "python3", "-B", "-c")
    submitters = [machine.popen(*argv, code(submit, SCRIPT, scale.seed(at)), user="alice") for at in (1000, 2000)]
    try:
        inside(machine, kill_often, KILLS, scale.seed(20261122), user="root", timeout=600)
    finally:
        machine.run("rm", "going", user="alice")
        told = [submitter.communicate(timeout=600) for submitter in submitters]
        machine.run("rm", DROP_IN)
        systemctl(machine, "daemon-reload")
    assert [submitter.returncode for submitter in submitters] == [0, 0], told
    done = [json.loads(out) for out, _ in told]
    asked = ("journalctl", "-q", "-o", "cat", "-u", "jobsvc.service", f"--since=@{began}")
    log = machine.run(*asked).stdout.decode()
    assert log.count("code=killed, status=9/KILL") >= KILLS
    for member in ("StartMany", "StopMany", "RestartMany"):
        assert sum(one["unanswered"][member] for one in done) > 0, "no crash came into the middle of it"
    all_results: Counter[str] = Counter()
    for one in done:
        wrong, results = inside(machine, faults, one["jobs"], one["surely"], timeout=110)
        assert wrong == [], wrong
        all_results.update(results)
    assert {"exit-code", "stopped"} <= all_results.keys(), all_results
    state = "import sqlite3; print(sqlite3.connect('/var/lib/jobsvc/jobs.db').execute('PRAGMA quick_check').fetchall())"
    assert machine.run("python3", "-c", state).stdout == b"[('ok',)]\n"
