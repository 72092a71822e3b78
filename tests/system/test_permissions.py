"""What needs nobody's leave, what needs an administrator, and that a restart is a start."""

import json
from typing import Any

import pytest
from story import ended, in_state, inside, jobctl, service, start, status

from machine.nspawn import Machine

pytestmark = pytest.mark.usefixtures("nothing_left")


def test_an_administrator_may_all_and_owner_and_user_stay_apart(machine: Machine) -> None:
    done = jobctl(machine, "run", "--uid", "root", "--", "id", "-u", user="dave")
    assert (done.returncode, done.stdout) == (0, b"0\n")
    told = status(machine, user="dave")
    assert (told["owner"], told["user"], told["uid"], told["owner_uid"]) == ("dave", "root", 0, 1003)

    job = start(machine, "--uid", "alice", "-d", "/", "--", "sh", "-c", "id -un; exec sleep 600", user="dave")
    machine.wait_until(lambda: jobctl(machine, "logs", job, user="alice").stdout == b"alice\n")
    told = status(machine, job)  # who it runs as may see it
    assert (told["owner"], told["user"], told["slice"]) == ("dave", "alice", "jobsvc-u1000.slice")
    assert jobctl(machine, "stop", job).returncode == 5  # and may not manage it
    assert jobctl(machine, "status", job, user="bob").returncode == 4
    assert jobctl(machine, "stop", job, user="dave").returncode == 0

    hers = start(machine, "--", "sleep", "600")
    assert jobctl(machine, "restart", hers, user="dave").returncode == 0
    machine.wait_until(lambda: status(machine, hers)["run"] == 2)
    told = in_state(machine, hers, "running")
    assert (told["owner"], told["user"]) == ("alice", "alice")
    assert jobctl(machine, "stop", hers, user="dave").returncode == 0


@pytest.mark.parametrize(
    "argv",
    [
        ["--uid", "root"],
        ["--uid", "0"],
        ["--uid", "bob"],
        ["--gid", "root"],
        ["--gid", "bob"],
        ["--gid", "jobsvc-admin"],
        ["--nice", "-1"],
        ["-p", "IOWeight=10000"],
        ["-p", "CPUWeight=1000"],
        ["-p", "LimitNOFILE=infinity"],
        ["-p", "LimitRTPRIO=1"],
        ["--stop-timeout", "1h"],
    ],
)
def test_more_than_ones_own_is_refused_without_a_password(machine: Machine, argv: list[str]) -> None:
    for user in ("alice", "carol"):
        done = jobctl(machine, "run", *argv, "--", "touch", "/var/tmp/refused", user=user)
        assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (125, b"", 1), done
        done = jobctl(machine, "start", *argv, "--", "touch", "/var/tmp/refused", user=user)
        assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (5, b"", 1), done
        assert b"org.jobsvc1." in done.stderr  # the action a rule can allow
    assert not machine.exists("/var/tmp/refused")
    assert jobctl(machine, "run", *argv, "--dry-run", "--", "true", user="dave").returncode == 0


def test_ones_own_groups_and_oneself_need_no_permission(machine: Machine) -> None:
    assert jobctl(machine, "run", "--uid", "alice", "--", "id", "-un").stdout == b"alice\n"
    assert jobctl(machine, "run", "--uid", "1000", "--gid", "1000", "--", "id", "-gn").stdout == b"alice\n"
    assert jobctl(machine, "run", "--gid", "jobsvc-admin", "--", "id", "-gn", user="dave").stdout == b"jobsvc-admin\n"
    groups = jobctl(machine, "run", "--", "id", "-Gn", user="carol").stdout.split()
    assert sorted(groups) == [b"carol", b"jobsvc-viewer"]


def test_system_users_run_jobs_only_if_the_configuration_says_so(machine: Machine) -> None:
    done = jobctl(machine, "start", "--", "true", user="daemon")
    assert (done.returncode, done.stderr.count(b"\n")) == (5, 1)
    assert b"AllowedSystemUsers=" in done.stderr
    machine.write("/etc/jobsvc/jobsvc.conf.d/60-story.conf", "[Manager]\nAllowedSystemUsers=daemon\n")
    service(machine, "restart")
    try:
        done = jobctl(machine, "run", "-d", "/", "--", "id", "-un", user="daemon")
        assert (done.returncode, done.stdout) == (0, b"daemon\n")
    finally:
        machine.run("rm", "/etc/jobsvc/jobsvc.conf.d/60-story.conf")
        service(machine, "restart")


def test_restarting_a_job_is_authorized_like_starting_it(machine: Machine) -> None:
    """alice may manage her job, but what it runs as root only dave may start."""
    rule = """polkit.addRule(function(action, subject) {
        if ((action.id == "org.jobsvc1.manage" || action.id == "org.jobsvc1.view") && subject.user == "alice")
            return polkit.Result.YES; });"""
    machine.write("/etc/polkit-1/rules.d/10-story.rules", rule)
    job = start(machine, "--uid", "root", "--", "true", user="dave")
    ended(machine, job, user="dave")
    other = start(machine, "--", "true", user="bob")
    ended(machine, other, user="bob")
    try:
        for one in (job, other):
            machine.wait_until(lambda one=one: _restart_refusal(machine, one), what="the rule to hold")
            assert status(machine, one, user="dave")["run"] == 1
    finally:
        machine.run("rm", "/etc/polkit-1/rules.d/10-story.rules")
    machine.wait_until(lambda: jobctl(machine, "status", other).returncode == 4, what="the rule to be forgotten")


def _restart_refusal(machine: Machine, job: str) -> bool:
    """polkit takes a moment to read a new rule: until then alice may not even manage."""
    done = jobctl(machine, "restart", job)
    assert done.returncode in {4, 5}, done
    return b"org.jobsvc1.start-as-user" in done.stderr


def test_name_means_a_job_of_ones_own(machine: Machine) -> None:
    """Whatever others call theirs, and though they were later."""
    named = ("-d", "/", "--name", "nightly", "--", "sleep", "600")
    roots, hers = start(machine, *named, user="root"), start(machine, *named)
    as_her = start(machine, "--uid", "alice", *named, user="root")  # she sees it, and it is not hers to stop
    his = start(machine, *named, user="bob")
    for job in (roots, hers, as_her, his):
        in_state(machine, job, "running", user="root")

    def meant(verb: str, *more: str, user: str) -> str:
        return str(json.loads(jobctl(machine, "-o", "json", verb, "nightly", *more, user=user).stdout)["id"])

    assert meant("status", user="alice") == hers
    assert meant("status", user="bob") == his
    assert meant("status", user="root") == as_her
    waits = start(machine, "--after", "nightly:any", "--", "true", user="root")
    assert [one for one, _ in status(machine, waits, user="root")["dependencies"]] == [as_her]
    assert jobctl(machine, "stop", "nightly").returncode == 0
    assert jobctl(machine, "remove", "nightly").returncode == 0
    done = jobctl(machine, "stop", "nightly")
    says = f"no job of yours is 'nightly'; there is {as_her} (root); give the id, or --user and --name"
    assert (done.returncode, done.stderr.decode()) == (4, f"jobctl: {says}\n")
    assert meant("status", user="alice") == as_her  # to look at, it is meant
    for job in (as_her, roots):
        assert jobctl(machine, "stop", "nightly", user="root").returncode == 0
        assert status(machine, job, user="root")["state"] == "stopped"
        assert jobctl(machine, "remove", "nightly", user="root").returncode == 0
    for verb in ("stop", "duplicate", "attach"):
        done = jobctl(machine, verb, "nightly", user="root")
        assert (done.returncode, f"there is {his} (bob)" in done.stderr.decode()) == (4, True), done
    done = jobctl(machine, "start", "--after", "nightly", "--", "true", user="root")
    assert (done.returncode, done.stdout) == (4, b"")
    assert meant("status", user="root") == his
    assert status(machine, his, user="root")["state"] == "running"
    assert jobctl(machine, "stop", "--user", "bob", "--name", "nightly", user="root").returncode == 0
    ended(machine, waits, user="root")


PINNED = """polkit.addRule(function(action, subject) {
    if (action.id == "org.jobsvc1.start-as-user" && subject.user == "alice" && action.lookup("job.user") == "bob" &&
            action.lookup("job.name") == "nightly" && action.lookup("job.command") == "echo 'alias ls=reboot'" &&
            action.lookup("job.output") == "append:/home/bob/nightly")
        return polkit.Result.YES; });"""


def test_what_a_rule_has_seen_is_what_is_opened(machine: Machine) -> None:
    """alice may have bob write one line into one file; the name of the job fills the path."""
    machine.write("/etc/polkit-1/rules.d/10-story.rules", PINNED)
    # The file belongs to bob, whose home no other enters.
    wanted = ("--hold", "--uid", "bob", "-d", "/", "--output", "append:/home/bob/%x")
    command = ("--", "echo", "alias ls=reboot")

    def held(*more: str) -> str:
        return start(machine, *wanted, *more, *command)

    def allowed() -> bool:
        return jobctl(machine, "start", "--dry-run", *wanted, "--name", "nightly", *command).returncode == 0

    try:
        machine.wait_until(allowed, what="the rule to hold")
        for name in (".profile", "..", ".", "nightly/../.profile", "other"):
            done = jobctl(machine, "start", *wanted, "--name", name, *command)
            assert (done.returncode, b"org.jobsvc1.start-as-user" in done.stderr) == (5, True), done
        first, second = held("--name", "nightly"), held("--name", "nightly")
        done = jobctl(machine, "set", first, "Name=.profile")
        assert (done.returncode, done.stderr.count(b"\n")) == (5, 1), done
        assert f"job {first} (.profile): org.jobsvc1.start-as-user needs a password" in done.stderr.decode()
        assert jobctl(machine, "release", first).returncode == 0
        assert ended(machine, first)["result"] == "success"
    finally:
        machine.run("rm", "/etc/polkit-1/rules.d/10-story.rules")
    assert machine.read("/home/bob/nightly") == b"alias ls=reboot\n"
    assert b"reboot" not in machine.run("sh", "-c", "cat /home/bob/.profile /home/bob/_*", check=False).stdout
    machine.wait_until(lambda: not allowed(), what="the rule to be forgotten")
    for argv in (("release", second), ("release", "--name", "nightly"), ("set", second, "NotBefore=now")):
        done = jobctl(machine, *argv)
        assert (done.returncode, b"org.jobsvc1.start-as-user" in done.stderr) == (5, True), done
    assert status(machine, second)["state"] == "queued"
    assert jobctl(machine, "stop", second).returncode == 0
    machine.run("rm", "/home/bob/nightly")


def test_group_that_was_left_starts_nothing(machine: Machine) -> None:
    machine.run("groupadd", "proj")
    try:
        machine.run("gpasswd", "-a", "alice", "proj")
        blocker = start(machine, "--", "sleep", "600")
        with_it = ("--gid", "proj", "--", "id", "-gn")
        held = start(machine, "--hold", *with_it)
        waits = start(machine, "--after", f"{blocker}:any", *with_it)
        granted = start(machine, "--uid", "alice", "-d", "/", "--after", f"{blocker}:any", *with_it, user="root")
        assert jobctl(machine, "run", *with_it).stdout == b"proj\n"
        machine.run("gpasswd", "-d", "alice", "proj")
        done = jobctl(machine, "release", held)
        assert (done.returncode, b"org.jobsvc1.start-as-user" in done.stderr) == (5, True), done
        assert jobctl(machine, "stop", held, blocker).returncode == 0
        told = ended(machine, waits)
        assert (told["result"], told["exit_code"]) == ("start-failed", None)
        assert told["reason"].startswith("alice is not in group proj (")
        assert ended(machine, granted, user="root")["result"] == "success"  # root has said so
        assert jobctl(machine, "logs", granted, user="root").stdout == b"proj\n"
    finally:
        machine.run("groupdel", "proj")


BIG = 3_000_000_000  # beyond what an int holds, and a user id like any other


def test_a_user_with_a_number_beyond_two_billions_is_a_user(machine: Machine) -> None:
    machine.run("groupadd", "--gid", f"{BIG}", "big")
    machine.run("useradd", "--create-home", "--no-log-init", "--uid", f"{BIG}", "--gid", f"{BIG}", "big")
    try:
        done = jobctl(machine, "run", "--", "sh", "-c", "id -u; id -g; id -un; pwd", user="big")
        assert (done.returncode, done.stdout) == (0, f"{BIG}\n{BIG}\nbig\n/home/big\n".encode()), done
        job = start(machine, "--", "sh", "-c", "echo here; exec sleep 600", user="big")
        machine.wait_until(lambda: jobctl(machine, "logs", job, user="big").stdout == b"here\n")
        told = status(machine, job, user="big")
        assert (told["uid"], told["owner_uid"], told["slice"]) == (BIG, BIG, f"jobsvc-u{BIG}.slice")
        listed = json.loads(jobctl(machine, "-o", "json", "list", user="big").stdout)
        assert {one["owner"] for one in listed} == {"big"}
        listed = json.loads(jobctl(machine, "-o", "json", "list", "--user", "big", user="root").stdout)
        assert job in {one["id"] for one in listed}
        for verb in ("status", "stop", "logs"):
            assert jobctl(machine, verb, job, user="alice").returncode == 4
        uid = (f"_UID={BIG}", "-o", "cat", "-q")
        assert machine.run("journalctl", "--namespace=jobsvc", *uid, f"JOBSVC_ID={job}").stdout.strip() == b"here"
        assert jobctl(machine, "stop", job, user="big").returncode == 0
        done = jobctl(machine, "run", "--uid", str(BIG), "-d", "/", "--", "id", "-u", user="dave")
        assert (done.returncode, done.stdout) == (0, f"{BIG}\n".encode()), done
    finally:
        machine.run("sh", "-c", "userdel --force --remove big; groupdel big", check=False)


def numbers(texts: list[str]) -> list[list[str]]:
    bus, told = Bus(), []  # noqa: F821
    for text in texts:
        for key in ("User", "Group"):
            spec = {"Command": ("as", ["touch", "/tmp/nobodys"]), "WorkingDirectory": ("s", "/"), key: ("s", text)}
            told.append([text, *bus.refused("Start", "a{sv}", spec)])
    return told


def test_what_is_no_users_number_is_refused_to_everybody(machine: Machine) -> None:
    texts = ["4294967295", "65535", "-1", "4294967296", str(2**64 - 1), "00", "0x0", " 0", "0 ", "+0", "#0", "\u0660"]
    for user in ("alice", "dave", "root"):
        told = inside(machine, numbers, texts, user=user)
        assert {error for _, error, _ in told} == {"InvalidSpec"}, told
        for number in texts[:2]:
            done = jobctl(machine, "run", f"--uid={number}", "-d", "/", "--", "touch", "/tmp/nobodys", user=user)
            assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (125, b"", 1), done
    assert not machine.exists("/tmp/nobodys")


NO = """polkit.addRule(function(action, subject) {
    if (action.id.indexOf("org.jobsvc1.") == 0 && subject.user == "bob")
        return polkit.Result.NO; });"""


def walk(job: str, own: str) -> dict[str, list[str]]:
    """Every method and property that introspection tells of, tried on this job: the error, if any, and text."""
    import xml.etree.ElementTree as ET

    bus, place = Bus(), f"{ROOT}/job/{job}"  # noqa: F821
    properties, introspectable = "org.freedesktop.DBus.Properties", "org.freedesktop.DBus.Introspectable"
    spec = {"Command": ("as", ["touch", "/tmp/walked"]), "WorkingDirectory": ("s", "/")}
    fitting: dict[str, Any] = {"a{sv}": {}, "as": [job], "aa{sv}": [spec], "b": True, "i": 9, "s": "all"}

    def members(path: str, kind: str) -> list[Any]:
        root = ET.fromstring(bus.call("Introspect", path=path, of=introspectable))
        return [(of.get("name"), one) for of in root.findall("interface") for one in of.findall(kind)]

    told = {"Introspect job": bus.refused("Introspect", path=place, of=introspectable)}
    for of, method in members(ROOT, "method"):  # noqa: F821
        name = method.get("name")
        kinds = [arg.get("type") for arg in method.findall("arg") if arg.get("direction") == "in"]
        body = [job if not at and kind == "s" else fitting[kind] for at, kind in enumerate(kinds)]
        if name == "Start":
            body = [spec]
        if name == "SetProperties":
            body[1] = {"Environment": ("as", ["A=b"])}
        if of == properties:
            body = [MANAGER, "Version"][: len(kinds)]  # noqa: F821
        told[name] = bus.refused(name, "".join(kinds), *body, of=of)
    for _, one in members(ROOT, "property"):  # noqa: F821
        told[f"Get {one.get('name')}"] = bus.refused("Get", "ss", MANAGER, one.get("name"), of=properties)  # noqa: F821
    for of, one in members(f"{ROOT}/job/{own}", "property"):  # noqa: F821
        told[f"Get job {one.get('name')}"] = bus.refused("Get", "ss", of, one.get("name"), path=place, of=properties)
    told["GetAll job"] = bus.refused("GetAll", "s", f"{NAME}.Job", path=place, of=properties)  # noqa: F821
    return told


# What tells anybody something: of the service, and of the jobs that are the caller's to see.
OPEN = {"Introspect", "Ping", "GetMachineId", "Get", "GetAll", "Subscribe", "Unsubscribe", "List", "Count", "Stats"}
OPEN |= {f"Get {name}" for name in ("Version", "Running", "Queued", "MaxRunning", "Maintenance")}
# What is about no job that is there.
NEW = {"Start", "StartMany", "SetMaintenance", "Reload"}


def test_where_polkit_says_no_every_method_does(machine: Machine) -> None:
    hers, his = (start(machine, "--name", f"of-{user}", "--", "sleep", "600", user=user) for user in ("alice", "bob"))
    for job in (hers, his):
        in_state(machine, job, "running", user="root")
    machine.write("/etc/polkit-1/rules.d/10-story.rules", NO)

    def all_there_is() -> list[Any]:
        facts = json.loads(jobctl(machine, "-o", "json", "list", "--limit", "0", user="root").stdout)
        return [[job[key] for key in ("id", "state", "run", "seq")] for job in facts]

    try:
        dry = ("start", "--dry-run", "--", "true")
        machine.wait_until(lambda: jobctl(machine, *dry, user="bob").returncode == 5, what="the rule to hold")
        before = all_there_is()
        of_hers, of_his = (inside(machine, walk, job, his, user="bob") for job in (hers, his))
        assert all_there_is() == before
    finally:
        machine.run("rm", "/etc/polkit-1/rules.d/10-story.rules")
    assert len(of_hers) > 80
    many = {name for name in of_hers if name.endswith("Many")} - NEW
    assert len(many) > 5
    visible = {name for name in of_hers if name in ("Status", "Logs", "ReadLogs") or " job" in name}
    for told, error, seen in ((of_hers, "NoSuchJob", OPEN), (of_his, "AccessDenied", OPEN | visible)):
        assert {name: told[name] for name in NEW if told[name][0] != "AccessDenied"} == {}
        assert {name: told[name] for name in many if error not in told[name][1]} == {}
        unlike = {name: told[name] for name in told.keys() - NEW - many - seen if told[name][0] != error}
        assert unlike == {}
        unknown = "not known yet"  # of a job that has not ended
        assert {name: told[name] for name in seen if told[name][0] and unknown not in told[name][1]} == {}
    assert "of-alice" not in repr(of_hers) + repr(of_his)
    assert hers not in repr([of_his, *(of_hers[name] for name in OPEN)])
    assert not machine.exists("/tmp/walked")
    assert jobctl(machine, "maintenance", "status").stdout.startswith(b"maintenance is off")
    assert jobctl(machine, "stop", hers, his, user="root").returncode == 0
