"""Transitions: what may follow what, and that nothing known is lost on the way."""

from dataclasses import replace

import pytest

from jobsvc import model
from jobsvc.errors import WrongState
from jobsvc.model import Finished, Job, Queued, Result, Run, Running, Starting, State, Stopping, User

ALICE = User(1000, "alice")
QUEUED = Job(
    id="0123456789abcdef",
    owner=ALICE,
    user=ALICE,
    gid=1000,
    spec={"Command": ["/usr/bin/true"]},
    created_at=1,
    request=":1.1:1",
    run=Run(1, Queued("waiting")),
)
STARTING = model.begin(QUEUED, "boot")
RUNNING = model.started(STARTING, 42, 5)
DONE = Finished(Result.SUCCESS, at=9, exit_code=0)


def test_a_job_goes_from_the_queue_to_its_end() -> None:
    assert [job.state for job in (QUEUED, STARTING, RUNNING, model.finish(RUNNING, DONE))] == [
        State.QUEUED,
        State.STARTING,
        State.RUNNING,
        State.COMPLETED,
    ]


@pytest.mark.parametrize("result", Result)
def test_every_result_has_its_state(result: Result) -> None:
    finished = model.finish(RUNNING, Finished(result, at=9))
    assert finished.state in model.FINISHED
    assert (finished.state is State.COMPLETED) == (result is Result.SUCCESS)


def test_the_first_end_holds() -> None:
    finished = model.finish(RUNNING, DONE)
    assert model.finish(finished, Finished(Result.LOST, at=10)) is finished


def test_the_name_of_a_program_is_no_longer_than_one_that_is_given() -> None:
    job = replace(QUEUED, spec={"Command": ["/bin/" + 1000 * "x"]})
    assert job.name == 128 * "x"


def test_hearing_of_the_start_twice_changes_nothing() -> None:
    assert model.started(RUNNING, 42, 5) == RUNNING


def test_a_stop_is_not_forgotten_when_the_start_is_heard_of_late() -> None:
    stopping = model.stop(STARTING, "stopped by alice", 6)
    assert model.started(stopping, 42, 5).state is State.STOPPING


def test_a_queued_job_that_is_stopped_is_canceled() -> None:
    phase = model.stop(QUEUED, "stopped by alice", 6).run.phase
    assert isinstance(phase, Finished)
    assert phase.result is Result.CANCELED


def test_what_is_finished_cannot_be_stopped() -> None:
    with pytest.raises(WrongState, match="completed already"):
        model.stop(model.finish(RUNNING, DONE), "", 10)


@pytest.mark.parametrize(
    ("end", "says"),
    [
        (Finished(Result.EXIT_CODE, 9, exit_code=3), "run 1 ended: exit-code 3"),
        (Finished(Result.OOM_KILL, 9, "no memory", signal=9), "run 1 ended: oom-kill 9"),
        (Finished(Result.START_FAILED, 9, "no such file: /x"), "run 1 ended: start-failed (no such file: /x)"),
        (Finished(Result.LOST, 9), "run 1 ended: lost"),
    ],
)
def test_what_is_tried_again_knows_how_the_last_run_ended(end: Finished, says: str) -> None:
    again = model.retry(replace(model.finish(RUNNING, end), spec={"Retries": 1}), 10)
    assert again
    assert again.run.phase == Queued(says)


def test_a_restart_of_a_finished_job_is_a_new_run_of_the_same_spec() -> None:
    again = model.restart(model.finish(RUNNING, DONE), ":1.2:3", "waiting")
    assert (again.run.number, again.state, again.spec) == (2, State.QUEUED, QUEUED.spec)
    assert again.run.main_pid is None


def test_a_restart_of_a_running_job_waits_for_its_end() -> None:
    stopping = model.restart(RUNNING, ":1.2:3", "")
    assert stopping.run.phase == Stopping("restart", again=":1.2:3")
    assert stopping.run.main_pid == 42


def test_a_stop_takes_back_a_restart_that_waits() -> None:
    stopping = model.stop(model.restart(RUNNING, ":1.2:3", ""), "stopped by alice", 7)
    assert stopping.run.phase == Stopping("stopped by alice")


def test_a_run_that_never_began_goes_back_to_the_queue_with_its_number() -> None:
    back = model.requeue(STARTING, "the service was restarted")
    assert (back.run.number, back.state) == (1, State.QUEUED)
    with pytest.raises(WrongState):
        model.requeue(RUNNING, "")


def test_beginning_twice_is_our_bug() -> None:
    with pytest.raises(WrongState):
        model.begin(STARTING, "boot")


def test_a_job_without_a_name_is_called_after_its_program() -> None:
    assert QUEUED.name == "true"
    assert replace(QUEUED, spec={"Command": ["x"], "Name": "build"}).name == "build"


@pytest.mark.parametrize(
    ("bus", "json"),
    [
        ("CPUQuotaPerSecUSec", "cpu_quota_per_sec_usec"),
        ("IOReadIOPSMax", "io_read_iops_max"),
        ("AllowedCPUs", "allowed_cpus"),
        ("MainPID", "main_pid"),
        ("UID", "uid"),
        ("OwnerUID", "owner_uid"),
        ("CPUUsageNSec", "cpu_usage_nsec"),
        ("Id", "id"),
        ("OnBehalfOf", "on_behalf_of"),
        ("LimitsNotInForce", "limits_not_in_force"),
    ],
)
def test_json_spells_bus_names_in_snake_case(bus: str, json: str) -> None:
    assert model.snake(bus) == json


def test_phases_have_states() -> None:
    assert {model.STATES[kind] for kind in (Queued, Starting, Running, Stopping)} <= set(State)
