"""Three workflows of other tools, as somebody would type them who has read jobctl(1) only.

The same ones are in the README, under "Coming from tsp, pueue, sbatch".
"""

import json
import tarfile
from collections.abc import Iterator
from io import BytesIO

import pytest
from story import Done, assert_nothing_left, in_state, jobctl, systemctl

from machine.nspawn import Machine

QUEUES = "/etc/jobsvc/jobsvc.conf.d/queues.conf"


@pytest.fixture(autouse=True)
def nothing_left(machine: Machine) -> Iterator[None]:
    # What other tests left in the history, also others' jobs that ran as alice.
    manager = ("org.jobsvc1", "/org/jobsvc1", "org.jobsvc1.Manager")
    ended = ("1", "State", "as", "3", "completed", "failed", "stopped")
    machine.run("busctl", "--timeout=120", "call", *manager, "RemoveMany", "asa{sv}", "0", *ended, timeout=130)
    yield
    jobctl(machine, "stop", "--all")
    jobctl(machine, "remove", "--all")
    assert_nothing_left(machine)


@pytest.fixture
def queues(machine: Machine) -> Iterator[None]:
    """What the administrator has said once: a queue that runs two at a time."""
    machine.write(QUEUES, "[Queue two]\nMaxRunning=2\n")
    systemctl(machine, "reload", "jobsvc")
    yield
    machine.run("rm", QUEUES)
    systemctl(machine, "reload", "jobsvc")


def sh(machine: Machine, script: str, check: bool = True) -> str:
    """What is typed into a shell, in a directory of its own; what it says."""
    typed = f"mkdir -p ~/work && cd ~/work\n{script}"
    done: Done = machine.run("bash", "-euc", typed, user="alice", check=check, timeout=60)
    return done.stdout.decode()


def states(machine: Machine, *filters: str) -> list[str]:
    return [job["state"] for job in json.loads(jobctl(machine, "-o", "json", "list", *filters).stdout)]


def test_as_with_tsp(machine: Machine) -> None:
    """Line things up, one at a time; look; read; go on when they are done; tidy up."""
    sh(machine, """
        rm -rf *; for n in 1 2 3; do echo film $n >film$n; done
        printf 'until test -e go; do sleep .05; done; tr a-z A-Z <$1 >$1.out; echo done $1\\n' >encode
        for film in film1 film2 film3; do jobctl start -q --queue serial --name encode -- sh encode $film; done
        jobctl start -q --queue serial --name join --after encode -- cat film1.out film2.out film3.out
    """)  # fmt: skip
    in_state(machine, "@~3", "running")
    listed = sh(machine, "jobctl list --queue serial")
    assert listed.count("encode") >= 3
    assert "MaxRunningPerUser=1 of queue 'serial' is reached" in listed
    assert states(machine, "--queue", "serial", "--reverse") == ["running", "queued", "queued", "queued"]
    sh(machine, "touch go; jobctl wait --exit-code join")
    assert sh(machine, "jobctl logs join") == "FILM 1\nFILM 2\nFILM 3\n"
    assert sh(machine, "jobctl logs encode") == "done film3\n"
    assert sh(machine, "jobctl remove --finished").count("removed") == 4


def test_as_with_pueue(machine: Machine, queues: None) -> None:
    """Stash and enqueue, two at once, pause and go on, a failure repaired and run again, wait, clean up."""
    sh(machine, """
        rm -rf *
        jobctl start -q --queue two --name fetch --hold -- sh -c 'cat data/big'
        jobctl start -q --queue two --name slow -- sleep 600
        jobctl start -q --queue two --name unpack --after fetch -- sh -c 'echo unpacked'
        jobctl start -q --queue two --name clean --after fetch:failure -- true
    """)  # fmt: skip
    assert "held" in sh(machine, "jobctl list --state queued --columns name,reason")
    in_state(machine, "slow", "running")
    sh(machine, "jobctl pause slow")
    assert in_state(machine, "slow", "paused")["state"] == "paused"
    sh(machine, "jobctl resume --all; jobctl release fetch; jobctl wait clean; jobctl wait fetch || true")
    assert states(machine, "--name", "unpack") == ["stopped"]  # it can no longer follow a success
    assert "No such file" in sh(machine, "jobctl list --state failed; jobctl logs fetch 2>&1")
    sh(machine, "mkdir data; echo content >data/big; jobctl restart fetch; jobctl wait fetch")
    again = sh(machine, "jobctl duplicate unpack").strip()
    assert sh(machine, f"jobctl wait {again}; jobctl logs {again}; jobctl logs fetch") == "unpacked\ncontent\n"
    sh(machine, "jobctl set slow MemoryMax=64M RuntimeMaxSec=1h; jobctl stop slow")
    sh(machine, "jobctl remove --finished")
    assert states(machine) == []


SIMULATION = """\
#!/bin/bash
#JOBCTL --name sim --memory 256M --timeout 10min
#JOBCTL --array 1-5%2
#JOBCTL --output sim-%a.txt
echo "task $JOBSVC_ARRAY_INDEX of $JOBSVC_ARRAY_ID"
test "$JOBSVC_ARRAY_INDEX" != 4 || test -e repaired
"""


def test_as_with_sbatch(machine: Machine) -> None:
    """A script with its options in it, as an array; a job after all of it; a failed task again; accounting."""
    machine.write("/var/tmp/sim.sh", SIMULATION)
    sh(machine, """
        rm -rf *; cp /var/tmp/sim.sh .
        tasks=$(jobctl script sim.sh)
        jobctl start -q --name report --after "$tasks:any" -- sh -c 'cat sim-*.txt | wc -l'
        rm sim.sh
        jobctl wait report
    """)  # fmt: skip
    assert sh(machine, "jobctl logs report") == "5\n"
    failed = json.loads(sh(machine, "jobctl -o json list --name sim --state failed"))
    assert [(task["array_index"], task["exit_code"]) for task in failed] == [(4, 1)]
    assert failed[0]["limits"]["memory_max"] == 256 * 2**20
    assert sh(machine, "touch repaired; jobctl restart --name sim --state failed").split()[0] == failed[0]["id"]
    sh(machine, f"jobctl wait {failed[0]['id']}")
    assert states(machine, "--name", "sim") == ["completed"] * 5
    counted = json.loads(sh(machine, "jobctl -o json stats --name sim"))
    assert sum(day["completed"] for day in counted) == 5
    archive = machine.run("sh", "-c", "jobctl export @ - ", user="alice").stdout
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        names = [name.split("/", 1)[1] for name in tar.getnames()]
        assert names == ["job.json", "spec.json", "runs/1/run.json", "runs/1/stdout", "runs/1/stderr"]
        written = tar.extractfile(tar.getmembers()[3])
        assert written
        assert written.read() == b"5\n"


GRAPH = """\
[defaults]
memory = "256M"

[job.fetch]
script = "echo 1 >data; echo 2 >>data"
retries = 1

[job.half]
command = ["sh", "-c", "sed -n ${JOBSVC_ARRAY_INDEX}p data >half.$JOBSVC_ARRAY_INDEX"]
array = "1-2"
after = ["fetch"]

[job.sum]
command = ["sh", "-c", "cat half.1 half.2"]
after = ["half"]
"""


def test_a_graph_of_jobs_from_a_file(machine: Machine) -> None:
    machine.write("/var/tmp/graph.toml", GRAPH)
    told = sh(machine, "rm -rf *; jobctl submit /var/tmp/graph.toml; jobctl wait sum; jobctl logs sum")
    assert [line.split()[-1] for line in told.splitlines()] == ["fetch", "half", "half", "sum", "1", "2"]
    broken = sh(machine, "sed 's/256M/lots/' /var/tmp/graph.toml | jobctl submit - 2>&1 || true")
    assert broken == "jobctl: -: [job.fetch] memory: 'lots' is not a size; write bytes, 512M, 1.5G or infinity\n"
    assert len(states(machine)) == 4
