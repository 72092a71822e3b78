"""What polkit asks a person: a yes is for what was asked, as it was then, and for once."""

import json
import re
from typing import Any

import pytest
from story import inside, jobctl, start

from machine.nspawn import Machine

pytestmark = pytest.mark.usefixtures("nothing_left")

MEAN = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202eevil\u2066\r\nforged"
RULES = "/etc/polkit-1/rules.d/10-story.rules"


def asked() -> dict[str, Any]:
    """Calls of alice's, made again after a yes: what polkit asks each time."""
    agent = Agent()  # noqa: F821
    with seen_as(1000):  # noqa: F821
        bus = Bus(fds=False)  # noqa: F821

    def call(member: str, signature: str, *body: Any, yes: bool = True) -> list[str]:
        """The actions that were asked about until there was an answer, and its error."""
        serial, actions = bus.send(member, signature, *body, flags=4), []
        while True:
            try:
                bus.reply(serial, 0.02)
                return actions
            except Refused as error:  # noqa: F821
                return [*actions, error.name]
            except TimeoutError:
                pass
            try:
                question = agent.told(timeout=0.02)
            except TimeoutError:
                continue
            actions.append(question.body[0].rpartition(".")[2])
            agent.answer(question, yes)

    one, other = ({"Command": ("as", ["true", text]), "WorkingDirectory": ("s", "/")} for text in "ab")
    root, fast = {"User": ("s", "root")}, {"Nice": ("i", -5)}
    told = {
        "root": [call("Start", "a{sv}", one | root) for _ in range(2)],
        "root, no": call("Start", "a{sv}", one | root, yes=False),
        "fast": [call("Start", "a{sv}", one | fast) for _ in range(2)],
        "fast, no": call("Start", "a{sv}", one | fast, yes=False),
        "many": call("StartMany", "aa{sv}a{sv}", [one | root, one | root, other | root], {}),
        "many, no": call("StartMany", "aa{sv}a{sv}", [one | root, other | root], {}, yes=False),
    }
    held = bus.call("Start", "a{sv}", one | {"Hold": ("b", True)})[0]
    told["set"] = [call("SetProperties", "sa{sv}a{sv}", held, {"CPUWeight": ("t", n)}, {}) for n in (101, 102)]
    bus.call("Stop", "sa{sv}", held, {})
    jobs = [job["Id"][1] for job in bus.call("List", "a{sv}", {"Limit": ("u", 500)})[0]]
    bus.until_ended(*jobs)
    told["jobs"] = len(jobs)
    return told


def test_a_yes_to_one_start_is_asked_for_again_at_the_next(machine: Machine) -> None:
    before = jobctl(machine, "-o", "jsonl", "list", "--limit", "0").stdout.count(b"\n")
    told = inside(machine, asked, user="root")
    assert told["root"] == [["start-as-user"]] * 2
    assert told["root, no"] == ["start-as-user", "AccessDenied"]
    assert told["fast"] == [["exceed-limits"]] * 2
    assert told["fast, no"] == ["exceed-limits", "AccessDenied"]
    assert told["many"] == ["start-as-user"] * 2  # the same job twice is one question, another one another
    assert told["many, no"] == ["start-as-user", "AccessDenied"]
    assert told["set"] == [["exceed-limits"]] * 2
    assert told["jobs"] == min(500, before + 2 + 2 + 3 + 1)  # a page has no more


def meanwhile() -> dict[str, Any]:
    """alice is asked about root's command; before she says yes, it has become another one."""
    agent, root = Agent(), Bus()  # noqa: F821
    with seen_as(1000):  # noqa: F821
        alice, other = Bus(), Bus()  # noqa: F821
    told: dict[str, Any] = {}

    def ask(what: str, act: Any, bus: Any, member: str, signature: str, *body: Any) -> Any:
        """The answer to a call, with `act` done between the question and the yes."""
        serial = bus.send(member, signature, *body, flags=4)
        question = agent.told()
        act()
        agent.answer(question, True)
        try:
            answer = bus.reply(serial)
        except Refused as error:  # noqa: F821
            told[what] = [error.name, error.text]
            return None
        told[what] = ["", ""]
        return answer

    def begun(**keys: Any) -> str:
        """A job of alice's that runs as root, which has been allowed."""
        spec = {"WorkingDirectory": ("s", "/"), "User": ("s", "root"), **keys}
        return str(ask("begun", lambda: None, alice, "Start", "a{sv}", spec)[0])

    def change(command: list[str]) -> None:
        root.call("SetProperties", "sa{sv}a{sv}", job, {"Command": ("as", command)}, {})

    good, evil, hold = ["/usr/bin/id", "-u"], ["touch", "/root/owned"], ("b", True)
    job = begun(Command=("as", good), Hold=hold)
    for what, member, signature, body in (
        ("set", "SetProperties", "sa{sv}a{sv}", ({"Environment": ("as", ["A=b"])}, {})),
        ("restart", "Restart", "sa{sv}", ({},)),
    ):
        ask(what, lambda: change(evil), alice, member, signature, job, *body)
        told[what] += [root.status(job)["State"], root.status(job)["Run"]]
        change(good)
    new = ask("duplicate", lambda: change(evil), alice, "Duplicate", "sa{sv}", job, {"Hold": hold})
    told["copy"] = root.status(new[0])["Command"] if new else []
    for one in (job, *(new or [])[:1]):
        root.call("Stop", "sa{sv}", one, {})
    ask("removed", lambda: root.call("Remove", "sa{sv}", job, {}), alice, "Restart", "sa{sv}", job, {})
    job = begun(Command=("as", ["sleep", "600"]), Pty=hold)

    def stop() -> None:
        root.call("Stop", "sa{sv}", job, {})
        root.until_ended(job)

    while root.status(job)["State"] != "running":
        time.sleep(0.01)  # noqa: F821
    ask("attach", stop, other, "Attach", "sa{sv}", job, {})  # by another connection than the one that started it
    return told


def test_a_job_that_changes_while_the_question_is_open_is_not_what_was_allowed(machine: Machine) -> None:
    told = inside(machine, meanwhile, user="root")
    for what in ("set", "restart"):
        name, text, state, run = told[what]
        assert (name, "changed by somebody else" in text) == ("WrongState", True), told
        assert (state, run) == ("queued", 1)
    assert told["duplicate"][0] in ("", "WrongState"), told
    assert told["copy"] in ([], ["/usr/bin/id", "-u"])  # what was asked about, or nothing
    assert told["removed"][0] == "NoSuchJob"
    assert told["attach"][0] == "WrongState"
    assert not machine.exists("/root/owned")


def recycled(commands: list[list[str]]) -> dict[str, Any]:
    """A question about a user who is another one when it is answered; a caller who is gone when it is."""
    import subprocess

    agent, root = Agent(), Bus()  # noqa: F821
    with seen_as(1000):  # noqa: F821
        alice, gone = (Bus(fds=False) for _ in range(2))  # noqa: F821
    spec = {"Command": ("as", ["touch", "/tmp/recycled"]), "WorkingDirectory": ("s", "/")}
    serial = alice.send("Start", "a{sv}", spec | {"User": ("s", "eve")}, flags=4)
    question = agent.told()
    for command in commands:
        subprocess.run(command, check=True, capture_output=True)
    agent.answer(question, True)
    told: dict[str, Any] = {}
    try:
        job = alice.reply(serial)[0]
        end = root.until_ended(job)[job]
        told["eve"] = [end["Result"], end["Reason"]]
    except Refused as error:  # noqa: F821
        told["eve"] = [error.name, error.text]
    gone.send("Start", "a{sv}", spec | {"User": ("s", "root")}, flags=4)
    question = agent.told()
    gone.connection.sock.close()
    told["canceled"] = agent.told("CancelAuthentication").body[0] == question.body[4]
    return told


def test_a_user_who_is_gone_while_the_question_is_open_starts_nothing(machine: Machine) -> None:
    machine.run("useradd", "-u", "3001", "eve")
    theft = [["userdel", "eve"], ["useradd", "-u", "3001", "mallory"]]
    try:
        told = inside(machine, recycled, theft, user="root")
    finally:
        machine.run("sh", "-c", "userdel eve; userdel mallory", check=False)
    assert told["eve"][0] == "start-failed", told
    assert "eve" in told["eve"][1]
    assert told["canceled"]  # no dialog is left of a caller who has left
    assert not machine.exists("/tmp/recycled")
    assert jobctl(machine, "-o", "jsonl", "list", "--state", "queued,starting,running", user="root").stdout == b""


def typed(calls: list[list[Any]]) -> list[list[Any]]:
    """Each command in a terminal, a password typed where one is asked for: its exit code and what was shown."""
    import pty
    import termios

    told = []
    for argv, password in calls:
        pid, fd = pty.fork()
        if not pid:
            os.environ.update(LANG="C.UTF-8", TERM="dumb")  # noqa: F821
            os.execvp(argv[0], argv)  # noqa: F821
        shown, ready = b"", False
        while True:
            try:
                got = os.read(fd, 4096)  # noqa: F821
            except OSError:  # its last process has closed it
                break
            shown += got
            if not ready and b"assword:" in shown:
                ready = True
                # What is typed before the echo is off is thrown away by the one who asks.
                while termios.tcgetattr(fd)[3] & termios.ECHO:
                    time.sleep(0.01)  # noqa: F821
                os.write(fd, password.encode() + b"\n")  # noqa: F821
        os.close(fd)  # noqa: F821
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])  # noqa: F821
        told.append([code, shown.decode()])
    return told


def test_an_administrators_password_is_asked_for_in_the_terminal_and_only_the_right_one_will_do(
    machine: Machine,
) -> None:
    """alice has logged in and root has a password, which pkttyagent gives to PAM."""
    leave = ["--uid", "root", "-d", "/", "--", "sh", "-c", "id -u; touch /root/$0"]
    calls = [(["jobctl", "run", *leave, "right"], "sesame"), (["jobctl", "start", *leave, "right"], "sesame")]
    calls += [(["jobctl", "run", *leave, "wrong"], "wrong"), (["jobctl", "start", *leave, "wrong"], "wrong")]
    calls += [(["jobctl", "--no-ask-password", "run", *leave, "wrong"], "sesame")]
    theirs = start(machine, "--name", "theirs", "--", "sleep", "600", user="bob")
    calls += [(["jobctl", "status", "-n", "0", theirs], "sesame")]  # named by its whole id, it may be shown
    made = machine.run("chpasswd", input=b"root:sesame\n")
    assert made.returncode == 0
    try:
        told = inside(machine, typed, calls, login=True)
        assert (machine.exists("/root/right"), machine.exists("/root/wrong")) == (True, False)
    finally:
        machine.run("sh", "-c", "usermod -p '*' root; rm -f /root/right /root/wrong; loginctl terminate-user alice")
        jobctl(machine, "stop", theirs, user="bob")
    assert [code for code, _ in told] == [0, 0, 125, 5, 125, 0], told
    assert "theirs" in told[5][1]
    assert all("to run a job as user 'root'" in shown for _, shown in told[:4]), told
    assert "assword:" not in told[4][1]
    assert told[0][1].endswith("0\r\n")
    assert "sesame" not in repr(told)


# Everything a rule may look at, and everything a dialog may show, of a job with mean characters wherever it has text.
LOOK = r"""polkit.addRule(function(action, subject) {
    if (action.id != "org.jobsvc1.%s" || subject.user != "alice")
        return polkit.Result.NOT_HANDLED;
    var all = String(action);
    ["command", "script", "arguments", "shell", "working-directory", "environment", "output", "name"].forEach(
        function(name) { all += (action.lookup("job." + name) || ""); });
    return /[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]/.test(all) || all.indexOf("\ufffd") < 0 ?
        polkit.Result.NO : polkit.Result.YES; });"""


# The question about managing a job names it, and comes after the one about seeing it.
VIEW = """polkit.addRule(function(action, subject) {
    if (action.id == "org.jobsvc1.view" && subject.user == "alice")
        return polkit.Result.YES; });"""


def mean(text: str) -> list[list[str]]:
    """Specs with this text in each place where they may have text; what each is answered with."""
    bus, path = Bus(), f"/{text}"  # noqa: F821
    places: list[dict[str, Any]] = [
        {"Command": ("as", [path])},
        {"Command": ("as", ["true", text])},
        {"Command": ("as", ["true"]), "WorkingDirectory": ("s", path)},
        {"Command": ("as", ["true"]), "Environment": ("as", [f"A{text}=b"])},
        {"Command": ("as", ["true"]), "StandardOutput": ("s", f"append:{path}")},
        {"Script": ("ay", f"echo {text}".encode()), "Shell": ("s", "/bin/sh")},
        {"Script": ("ay", b"true"), "Arguments": ("as", [text])},
        {"Script": ("ay", b"true"), "Shell": ("s", path)},
    ]
    root = {"User": ("s", "root"), "DryRun": ("b", True)}
    return [bus.refused("Start", "a{sv}", place | root) for place in places]


def test_no_mean_character_reaches_a_rule_or_a_dialog(machine: Machine) -> None:
    machine.write(RULES, LOOK % "start-as-user")
    try:
        machine.wait_until(lambda: inside(machine, mean, MEAN)[0][0] == "", what="the rule to hold")
        told = inside(machine, mean, MEAN)
        assert {name for name, _ in told} <= {"", "InvalidSpec"}, told
        assert [name for name, _ in told].count("") >= 6, told
        refused = inside(machine, mean, "fine")  # the rule does look
        assert {name for name, _ in refused} == {"AccessDenied"}, refused
    finally:
        machine.run("rm", RULES)
    machine.write(RULES, VIEW)
    try:
        told = inside(machine, dialogs, MEAN, user="root")
    finally:
        machine.run("rm", RULES)
    assert [action for action, *_ in told] == [
        f"org.jobsvc1.{name}" for name in ("start-as-user", "exceed-limits", "manage")
    ]
    assert "owned" in told[2][1]
    for one in told:
        text = json.dumps(one, ensure_ascii=False)
        assert re.search(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]|\\[ux]00|\\[rn]", text) is None, text


def dialogs(text: str) -> list[list[Any]]:
    """What polkit has an agent show when alice runs, changes and stops jobs with this text in them."""
    agent, root = Agent(), Bus()  # noqa: F821
    with seen_as(1000):  # noqa: F821
        alice = Bus(fds=False)  # noqa: F821
    with seen_as(1001):  # noqa: F821
        bob = Bus(fds=False)  # noqa: F821
    spec = {"Command": ("as", [f"/{text}"]), "WorkingDirectory": ("s", f"/{text}"), "Hold": ("b", True)}
    job, told = bob.call("Start", "a{sv}", spec)[0], []
    while alice.refused("Status", "sa{sv}", job, {})[0]:
        time.sleep(0.05)  # noqa: F821 - until the rule is there
    for member, signature, body in (
        ("Start", "a{sv}", (spec | {"User": ("s", "root")},)),
        ("Start", "a{sv}", (spec | {"Nice": ("i", -1)},)),
        ("Stop", "sa{sv}", (job, {})),
    ):
        serial = alice.send(member, signature, *body, flags=4)
        question = agent.told()
        told.append([question.body[0], question.body[1], question.body[3]])
        agent.answer(question, False)
        try:
            alice.reply(serial)
        except Refused:  # noqa: F821
            pass
    root.call("Stop", "sa{sv}", job, {})
    return told
