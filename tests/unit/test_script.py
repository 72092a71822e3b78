"""A script as a job: what reads it, what it sees, and that nothing of it stays behind."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from stage import NOBODY, Stage, needs_root

from jobsvc import script
from jobsvc.verdict import StartError


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("echo hello\n", ["/bin/dash"]),
        ("#!/bin/bash\necho", ["/bin/bash"]),
        ("#! /usr/bin/env  -S python3 -I \nprint()", ["/usr/bin/env", "-S python3 -I"]),
        ("#!\t/bin/sh\t-e\t-u\n", ["/bin/sh", "-e\t-u"]),
        ("#!/bin/sh", ["/bin/sh"]),
        ("# no interpreter\n#!/bin/false\n", ["/bin/dash"]),
        (" #!/bin/false\n", ["/bin/dash"]),
    ],
)
def test_the_first_line_is_read_as_the_kernel_does(text: str, words: list[str]) -> None:
    assert script.interpreter(text, "/bin/dash") == words


@pytest.mark.parametrize(("text", "why"), [("#!/bin/sh\r\n", "DOS"), ("#!\n", "no interpreter"), ("#! \t", "no inter")])
def test_a_first_line_that_means_nothing_is_told(text: str, why: str) -> None:
    with pytest.raises(StartError, match=why):
        script.interpreter(text, "/bin/sh")


@pytest.fixture
def stage(shared: Stage) -> Iterator[Stage]:
    shared.fresh()
    yield shared
    assert os.listdir(f"{shared.directory}/scripts") == []


@needs_root
def test_a_script_gets_its_arguments_and_nothing_else(stage: Stage) -> None:
    text = 'echo "$#" "$1" "$2"; ls /proc/self/fd | tr "\\n" " "; cat "$0" | wc -c'
    assert stage.run(script=text, arguments=["a b", ""])["result"] == "success"
    assert stage.journal.output() == b"2 a b \n0 1 2 3 %d\n" % len(text)


@needs_root
def test_a_script_in_another_language(stage: Stage) -> None:
    text = "#!/usr/bin/env python3\nimport sys, os\nprint(sys.argv[1:], os.getuid())\n"
    assert stage.run(script=text, arguments=["x"])["result"] == "success"
    assert stage.journal.output().decode() == f"['x'] {NOBODY.pw_uid}\n"


@needs_root
def test_any_bytes_and_a_megabyte_of_them(stage: Stage) -> None:
    text = b"#!/bin/cat\n\xff\xfe\0" + os.urandom(1_000_000)
    assert stage.run(script=text.decode("utf-8", "surrogateescape"))["result"] == "success"
    assert stage.journal.output() == text


@needs_root
def test_a_script_is_its_users_alone(stage: Stage) -> None:
    run = stage.start(script="sleep 100")
    run.go()
    run.hear("started")
    facts = Path(f"{stage.directory}/scripts/{run.key}").stat()
    assert (stat.S_IMODE(facts.st_mode), facts.st_uid, facts.st_gid) == (0o500, NOBODY.pw_uid, NOBODY.pw_gid)
    assert stat.S_IMODE(Path(f"{stage.directory}/scripts").stat().st_mode) == 0o711
    run.tell("stop")
    run.end()


@needs_root
def test_an_interpreter_that_is_not_there(stage: Stage) -> None:
    report = stage.run(script="#!/usr/bin/nonesuch\n")
    assert (report["result"], report["exit_code"]) == ("start-failed", 127)
    assert "/usr/bin/nonesuch" in report["reason"]
    report = stage.run(script="#!/bin/sh\r\n")
    assert (report["result"], report["begun"]) == ("start-failed", False)
    assert "carriage return" in report["reason"]
