"""What follows the end of a job: which hooks, as whom, with what; and nothing follows a hook."""

from dataclasses import replace
from email import message_from_string, policy

import pytest

from jobsvc import hooks
from jobsvc.config import Config
from jobsvc.errors import InvalidSpec
from jobsvc.model import Finished, Job, Result, Run, Running, Starting, User

HOOKED = Config(on_finish=("/usr/bin/told", "a b"))
SPEC = {"Command": ["/bin/make"], "TimeoutStopUSec": 5, "Environment": ["SECRET=1"]}


def ended(result: Result, code: int | None = None, number: int | None = None, **spec: object) -> Job:
    end = Finished(result, at=9_000_000, reason="because\nof it", exit_code=code, signal=number)
    run = Run(2, end, started_at=8_000_000)
    dave, alice = User(1003, "dave"), User(1000, "alice")
    group = {"group_override": True, "group_granted": False}
    return Job("0" * 16, dave, alice, 50, {**SPEC, **spec}, 7_000_000, ":1.2:3", run, **group)


def test_the_hook_runs_as_the_job_did_and_knows_all_about_it() -> None:
    (hook,) = hooks.after(ended(Result.EXIT_CODE, 3), HOOKED, at=10)
    assert (hook.owner.name, hook.user.name, hook.gid, hook.group_override) == ("dave", "alice", 50, True)
    assert not (hook.root_allowed or hook.group_granted)
    assert (hook.spec["Command"], hook.spec["HookOf"]) == (["/usr/bin/told", "a b"], "0" * 16)
    assert hook.spec["Environment"] == [
        f"JOBSVC_FINISHED_{one}"
        for one in (
            *("ID=0000000000000000", "RUN=2", "NAME=make", "OWNER=dave", "USER=alice", "QUEUE=default"),
            *("STATE=failed", "RESULT=exit-code", "EXIT_CODE=3", "REASON=because�of it"),
            *("CREATED_USEC=7000000", "STARTED_USEC=8000000", "FINISHED_USEC=9000000"),
        )
    ]
    assert hooks.after(ended(Result.SUCCESS, 0), Config(), at=10) == []


def test_a_hook_has_no_hook_and_neither_has_what_never_had_its_turn() -> None:
    (hook,) = hooks.after(ended(Result.LOST), HOOKED, at=10)
    run = Run(1, Finished(Result.START_FAILED, at=11, exit_code=127))
    assert hooks.after(replace(hook, run=run), HOOKED, at=12) == []
    assert hooks.after(ended(Result.CANCELED, Notify="mail"), HOOKED, at=12) == []
    assert len(hooks.after(ended(Result.CANCELED, Notify="mail"), HOOKED, at=12, began=lambda: True)) == 2


def test_the_hook_of_a_task_knows_its_array() -> None:
    (hook,) = hooks.after(ended(Result.SUCCESS, 0, ArrayId="film", ArrayIndex=0), HOOKED, at=10)
    assert {"JOBSVC_FINISHED_ARRAY_ID=film", "JOBSVC_FINISHED_ARRAY_INDEX=0"} < set(hook.spec["Environment"])


def test_who_runs_a_hook_again_asks_for_no_more_than_its_command() -> None:
    (hook,) = hooks.after(ended(Result.LOST), HOOKED, at=10)
    assert hook.spec["Priority"] == 1000
    assert hooks.wanted(hook.spec).keys() == hook.spec.keys() - {"Priority", "HookOf"}
    assert hooks.wanted({"Priority": 5}) == {"Priority": 5}


def test_caller_of_a_job_is_known_by_its_scope() -> None:
    """A user names the scopes of a service manager of their own as they like; those are no job's."""
    job_id = "00000000000000aa"
    scope = f"/jobsvc.slice/jobsvc-u1000.slice/jobsvc-{job_id}-12.scope"
    job = replace(ended(Result.SUCCESS), id=job_id, run=Run(12, Running(), control_group=scope))
    jobs = {job_id: job}
    assert hooks.job_of(scope, jobs) is job
    assert hooks.job_of(f"{scope}/below", jobs) is job
    own = "/user.slice/user-1000.slice/user@1000.service/app.slice"
    for other in (
        None,
        "/user.slice",
        "/jobsvc.slice/jobsvc-u1000.slice",
        f"{own}/jobsvc-{job_id}-12.scope",
        f"{own}{scope}",
        scope.replace("-12.", "-11."),
        scope.replace("u1000", "u1001"),
        f"{scope}x",
        f"/x{scope}",
        scope.replace("aa-", "ab-"),
    ):
        assert hooks.job_of(other, jobs) is None, other
    assert hooks.job_of(scope, {job_id: replace(job, run=Run(13, Starting()))}) is None


@pytest.mark.parametrize(
    ("notify", "result", "mailed"),
    [
        ("mail", Result.SUCCESS, True),
        ("mail", Result.STOPPED, True),
        ("failure-mail", Result.TIMEOUT, True),
        ("failure-mail", Result.SUCCESS, False),
        ("failure-mail", Result.STOPPED, False),
        ("no", Result.LOST, False),
    ],
)
def test_mail_goes_to_those_who_asked_for_it(notify: str, result: Result, mailed: bool) -> None:
    assert bool(hooks.after(ended(result, Notify=notify), Config(), at=10)) is mailed


def test_the_mail_is_one_whatever_a_job_is_called() -> None:
    job = ended(Result.SIGNAL, number=9, Notify="mail", Name="naïve\nBcc: everybody")
    (mail,) = hooks.after(job, Config(), at=10)
    (text,) = mail.spec["Environment"]
    read = message_from_string(text.removeprefix("JOBSVC_MAIL="), policy=policy.default)
    assert read["To"] == "dave"
    assert "Bcc" not in read
    assert read["Subject"].startswith("naïve�Bcc: everybody on ")
    assert read["Subject"].endswith(": signal")
    body = read.get_content()
    assert "ended as failed: signal, signal 9, because�of it." in body
    assert "jobctl logs 0000000000000000" in body


@pytest.mark.parametrize(
    "name",
    ["=?utf-8?q?=00?=", "=?utf-8?q?a=0D=0ABcc:_x?=", "a =?utf-8?b?AAo=?= b", "=?utf-8?q?=3D=3Futf-8=3Fq=3F=00?="],
)
def test_a_name_is_not_decoded_into_something_else(name: str) -> None:
    (mail,) = hooks.after(ended(Result.SUCCESS, Notify="mail", Name=name), Config(), at=10)
    (text,) = mail.spec["Environment"]
    assert all(char.isprintable() or char == "\n" for char in text)
    read = message_from_string(text.removeprefix("JOBSVC_MAIL="), policy=policy.default)
    assert set(read) == {"To", "Subject", "Auto-Submitted", "Content-Type", "Content-Transfer-Encoding", "MIME-Version"}
    assert read["Subject"].startswith(name.replace("=?", "= ?") + " on ")
    assert name in read.get_content()


def test_a_mail_that_nobody_could_send_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr(hooks, "SENDMAIL", hooks.Path(f"{tmp_path}/sendmail"))
    hooks.check({"Notify": "no"})
    with pytest.raises(InvalidSpec, match="Notify=mail needs .*sendmail, which is not there"):
        hooks.check({"Notify": "mail"})
    hooks.SENDMAIL.write_text("")
    hooks.check({"Notify": "mail"})
