"""jobsvc.conf: later files win, unknown words are errors that name the nearest known one."""

import math
from pathlib import Path

import pytest

from jobsvc import config, quantity
from jobsvc.errors import InvalidConfig


def load(tmp_path: Path, *texts: str) -> config.Config:
    paths = [tmp_path / f"{index}.conf" for index in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    return config.load(paths)


def test_later_files_win(tmp_path: Path) -> None:
    found = load(tmp_path, "[Manager]\nMaxRunning=3\nPAM=no\n", "[Manager]\nMaxRunning=5\n")
    assert (found.max_running, found.pam) == (5, "no")


@pytest.mark.parametrize(
    ("text", "most"),
    [
        ("MaxRunning=100", 90),
        ("MaxRunning=15", 13),
        ("MaxRunning=9", quantity.INFINITY),
        ("MaxRunningPerUser=200", 200),
        ("MaxRunningPerUser=infinity", quantity.INFINITY),
    ],
)
def test_a_user_may_have_most_of_the_slots(tmp_path: Path, text: str, most: int) -> None:
    assert load(tmp_path, f"[Manager]\n{text}\n").running_per_user == most


def test_a_queue_that_runs_one_at_a_time_is_always_there(tmp_path: Path) -> None:
    assert load(tmp_path, "").queues == {"default": config.Queue(), "serial": config.Queue(max_running_per_user=1)}
    found = load(tmp_path, "[Queue serial]\nMaxRunning=4\n[Queue lab]\nMaxRunningPerUser=2\n").queues
    assert (found["serial"], found["lab"]) == (config.Queue(4, 1), config.Queue(None, 2))
    found = load(tmp_path, "[Queue batch]\nStartWhenLoadBelow=infinity\nStartWhenMemoryAvailable=1M\n").queues
    assert found["batch"] == config.Queue(start_when_load_below=math.inf, start_when_memory_available=2**20)
    found = load(tmp_path, "[Queue serial]\nMaxRunningPerUser=infinity\n").queues
    assert found["serial"].max_running_per_user == quantity.INFINITY


def test_limits_take_the_unit_file_spelling(tmp_path: Path) -> None:
    found = load(tmp_path, "[Defaults]\nMemoryMax=1G\n[Ceilings]\nCPUQuota=200%\n")
    assert found.defaults == {"MemoryMax": 2**30}
    assert found.ceilings["CPUQuotaPerSecUSec"] == 2_000_000


@pytest.mark.parametrize(
    ("text", "most", "on_finish"),
    [
        ("MaxRunning=3\n  OnFinish=/bin/a\n", 3, ("/bin/a",)),  # as in unit files this is no continuation
        ("\tMaxRunning = 3 \\\n\n", 3, ()),
        ("OnFinish=/bin/a b \\\n# not this\n  ; nor this\n  c\\\n\td\nMaxRunning=3", 3, ("/bin/a", "b", "c", "d")),
        ("MaxRunning=3\nOnFinish=/bin/a\\", 3, ("/bin/a",)),
        ("OnFinish=/bin/a 'b\\\\'\nMaxRunning=3", 3, ("/bin/a", "b\\\\")),
        ("# MaxRunning=4 \\\nMaxRunning=3", 3, ()),
    ],
)
def test_lines_are_those_of_unit_files(tmp_path: Path, text: str, most: int, on_finish: tuple[str, ...]) -> None:
    found = load(tmp_path, f"[Manager]\n{text}")
    assert (found.max_running, found.on_finish) == (most, on_finish)


def test_nothing_assigned_is_as_if_nothing_had_been_said(tmp_path: Path) -> None:
    said = (
        "[Manager]\nMaxRunning=3\nStartWhenLoadBelow=2\nAllowedSystemUsers=a\nAllowedSystemUsers=b c\n"
        "[Queue gpu]\nMaxRunning=1\nAllowedGroups=x\nAllowedGroups=y\n[Queue serial]\nMaxRunningPerUser=3\n"
        "[Defaults]\nMemoryMax=1G\nIOReadBandwidthMax=/ 1M\n"
        "[Ceilings]\nTimeoutStopSec=1h\nCPUQuota=50%\n[Ceilings staff]\nTasksMax=3\n"
    )
    found = load(tmp_path, said)
    assert (found.allowed_system_users, found.queues["gpu"].allowed_groups) == (("a", "b", "c"), ("x", "y"))
    unsaid = "".join(line.partition("=")[0] + "=" * ("=" in line) + "\n" for line in said.splitlines())
    assert load(tmp_path, said, unsaid) == load(tmp_path, "[Queue gpu]\n[Ceilings staff]\n")
    again = load(tmp_path, said, "[Manager]\nAllowedSystemUsers=\nAllowedSystemUsers=d\n[Queue gpu]\nAllowedGroups=\n")
    assert (again.allowed_system_users, again.queues["gpu"].allowed_groups) == (("d",), None)
    with pytest.raises(InvalidConfig, match="MemoryMaxx"):
        load(tmp_path, "[Defaults]\nMemoryMaxx=\n")


def test_what_can_be_lifted_takes_infinity(tmp_path: Path) -> None:
    found = load(tmp_path, "[Manager]\nMaxQueued=infinity\nKeepFinished=infinity\nKeepFinishedSec=infinity\n")
    assert (found.max_queued, found.keep_finished, found.keep_finished_usec) == (quantity.INFINITY,) * 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[Manager]\nMaxRuning=3\n", "did you mean MaxRunning"),
        ("[Manger]\nMaxRunning=3\n", "did you mean Manager"),
        ("[Manager]\nMaxRunning=many\n", "number"),
        ("[Manager]\nMaxRunning=0\n", "at least 1"),
        ("[Manager]\nMaxRunning=infinity\n", "must be a number"),
        ("[Manager]\nMaxQueued=٣\n", "must be a number or infinity"),
        ("[Manager]\nOnFinish=/bin/a\n  b\n", "'b' must be KEY=VALUE"),
        ("[Manager]\nLimitEnforcement=lax\n", "strict"),
        ("[Defaults]\nCommand=true\n", "limits only"),
        ("[Defaults]\nMemoryMax=12Q\n", "12Q"),
        ("[Ceilings staff]\nNice=3\n", r"\[Ceilings staff\] takes limits only"),
        ("[Ceilings staff more]\nTasksMax=3\n", "unknown section"),
        ("[Manager]\nInhibitShutdown=maybe\n", "no, delay, block"),
        ("MaxRunning=3\n", "section"),
        ("[Manager]\nMaxRunning\n", "0.conf"),
    ],
)
def test_a_bad_file_is_refused_with_its_name_and_the_reason(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InvalidConfig, match=says) as error:
        load(tmp_path, text)
    assert "0.conf" in str(error.value)
    assert "\n" not in str(error.value)


def test_drop_ins_of_the_administrator_replace_those_of_the_vendor(tmp_path: Path) -> None:
    for folder, names in (("vendor", ("10-a", "20-b")), ("admin", ("10-a", "15-c"))):
        (tmp_path / folder / "jobsvc.conf.d").mkdir(parents=True)
        for name in names:
            (tmp_path / folder / "jobsvc.conf.d" / f"{name}.conf").write_text("")
    found = config.files(tmp_path / "vendor", tmp_path / "admin")
    assert [f"{path.parts[-3]}/{path.stem}" for path in found] == ["admin/10-a", "admin/15-c", "vendor/20-b"]


def test_paths_add_up_and_of_one_the_last_amount_holds(tmp_path: Path) -> None:
    key = "IOReadBandwidthMax="
    found = load(tmp_path, f"[Defaults]\n{key}/ 1M\n{key}/srv 2M\n", f"[Defaults]\n{key}/ 3M\n")
    assert found.defaults["IOReadBandwidthMax"] == [("/", 3_000_000), ("/srv", 2_000_000)]


def test_of_several_groups_the_most_generous_ceiling_counts(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        "[Ceilings]\nMemoryMax=4G\nTasksMax=100\n"
        "[Ceilings students]\nMemoryMax=1G\nAllowedCPUs=0-1\nIOReadBandwidthMax=/ 1M\n"
        "[Ceilings staff]\nMemoryMax=16G\nAllowedCPUs=4\nIOReadBandwidthMax=/ 5M\nIOReadBandwidthMax=/srv 2M\n"
        "[Ceilings wheel]\n",
    )
    assert found.of([]) is found
    assert found.of(["wheel"]) is found
    student, both = found.of(["students"]).ceilings, found.of(["students", "staff", "unheard-of"]).ceilings
    assert (student["MemoryMax"], student["TasksMax"]) == (2**30, 100)
    assert (both["MemoryMax"], both["AllowedCPUs"]) == (16 * 2**30, b"\x13")
    assert both["IOReadBandwidthMax"] == [("/", 5_000_000), ("/srv", 2_000_000)]
    assert both["TimeoutStopUSec"] == found.ceilings["TimeoutStopUSec"]


def test_the_file_that_comes_with_the_package_shows_the_defaults(tmp_path: Path) -> None:
    shipped = (Path(__file__).parents[2] / "systemd/jobsvc.conf").read_text()
    assert load(tmp_path, shipped) == config.Config()
    said = "".join(line.removeprefix("#") + "\n" for line in shipped.splitlines() if "=" in line or line[:1] == "[")
    assert load(tmp_path, said) == config.Config()


def test_the_examples_of_the_manual_and_the_readme_can_be_used(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    page = (root / "man/jobsvc.conf.5").read_text()
    example = page[page.index(".Sh EXAMPLES") :]
    text = example[example.index("[Manager]") : example.index(".Ed")].replace("\\-", "-")
    assert load(tmp_path, text).queues["gpu"].allowed_groups == ("simulation",)
    readme = (root / "README.md").read_text()
    block = readme[readme.index("    [Manager]") : readme.index("What all jobs of a user may take")]
    found = load(tmp_path, "\n".join(line[4:] for line in block.splitlines()))
    assert found.inhibit_shutdown == "delay"
