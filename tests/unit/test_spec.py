"""Spec keys: their spelling, their bounds, and one clear error for everything else."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobsvc import control, spec
from jobsvc.errors import InvalidSpec

TRUE = {"Command": ("as", ["true"])}


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("CPUQuota=50%", "CPUQuotaPerSecUSec", 500_000),
        ("CPUQuotaPerSecUSec=500000", "CPUQuotaPerSecUSec", 500_000),
        ("MemoryMax=64M", "MemoryMax", 64 * 2**20),
        ("MemoryMax=infinity", "MemoryMax", spec.INFINITY),
        ("RuntimeMaxSec=30s", "RuntimeMaxUSec", 30_000_000),
        ("RuntimeMaxSec=30", "RuntimeMaxUSec", 30_000_000),
        ("RuntimeMaxUSec=30", "RuntimeMaxUSec", 30),
        ("IOReadBandwidthMax=/ 2M", "IOReadBandwidthMax", [("/", 2_000_000)]),
        ("AllowedCPUs=0-3,9", "AllowedCPUs", b"\x0f\x02"),
        ("KillSignal=SIGINT", "KillSignal", 2),
        ("UMask=0027", "UMask", 0o27),
        ('Environment="A=b c" B=2', "Environment", ["A=b c", "B=2"]),
        ("Environment=A='b c'", "Environment", ["A=b c"]),
        ("CPUQuotaPerSecUSec=500ms", "CPUQuotaPerSecUSec", 500_000),
        ("CPUQuotaPerSecUSec=infinity", "CPUQuotaPerSecUSec", spec.INFINITY),
        ("KillSignal=RTMIN+1", "KillSignal", signal.SIGRTMIN + 1),
        ("KillSignal=SIGRTMAX-2", "KillSignal", signal.SIGRTMAX - 2),
        ("LimitNOFILE=1024", "LimitNOFILE", 1024),
        ("Labels=ci=yes", "Labels", {"ci": "yes"}),
    ],
)
def test_unit_file_spelling(text: str, name: str, value: Any) -> None:
    assert spec.from_unit_file(text) == (name, value)


def test_shares_are_of_what_the_machine_has() -> None:
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    most = min(int(Path(f"/proc/sys/kernel/{name}").read_text()) for name in ("pid_max", "threads-max"))
    assert spec.from_unit_file("MemoryMax=50%") == ("MemoryMax", pages // 2 * page)
    assert spec.from_unit_file("MemoryHigh = 12.5%") == ("MemoryHigh", pages * 1250 // 10_000 * page)
    assert spec.from_unit_file("TasksMax=10%") == ("TasksMax", most // 10)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("CPUQouta=50%", "did you mean CPUQuota"),
        ("MemoryMax", "MemoryMax=VALUE"),
        ("MemoryMax=12Q", "12Q"),
        ("MemoryMax=101%", "is not a share"),
        ("MemoryMax=0%", "is not a share"),
        ("LogSizeMax=50%", "is not a size"),
        ("KillSignal=RTMIN+99", "unknown signal"),
        ("CPUQuotaPerSecUSec=5 parsec", "no time unit"),
        ("Environment=A=b c", "^Environment: must be NAME=VALUE"),
        ('Environment="A=b', "^Environment: No closing quotation"),
        ("CPUQuota=0%", "least is 1%"),
        ("Nice=20", "-20 to 19"),
        ("KillSignal=SIGNOTHING", "unknown signal"),
        ("OOMPolicy=maybe", "one of"),
        ("IOReadBandwidthMax=relative 2M", "absolute"),
        ("WorkingDirectory=../x", "absolute"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(text: str, says: str) -> None:
    with pytest.raises(InvalidSpec, match=says) as error:
        spec.from_unit_file(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({}, "Command is missing"),
        ({"Command": ("as", [])}, "program"),
        ({"Command": ("as", [""])}, "program"),
        ({"Command": ("s", "true")}, "type 'as'"),
        (TRUE | {"MemoryMax": ("s", "1G")}, "type 't'"),
        (TRUE | {"CPUQuota": ("t", 1)}, "CPUQuotaPerSecUSec"),
        (TRUE | {"CPUQuotaPerSecUSec": ("t", 15_000)}, "whole percents"),
        (TRUE | {"Nmae": ("s", "x")}, "did you mean Name"),
        (TRUE | {"Name": ("s", "two\nlines")}, "printable"),
        (TRUE | {"Environment": ("as", ["=x"])}, "NAME=VALUE"),
        (TRUE | {"Labels": ("a{ss}", {"k": "v" * 5000})}, "4 KiB"),
        (TRUE | {"KillSignal": ("i", 0)}, "signal"),
        (TRUE | {"StandardOutput": ("s", "journal")}, "append:"),
    ],
)
def test_a_spec_from_the_bus_is_refused_by_key(keys: spec.Values, says: str) -> None:
    with pytest.raises(InvalidSpec, match=says):
        spec.check(keys)


def test_the_paths_of_all_limits_fit_into_one_packet() -> None:
    names = sorted(spec.IO_PATHS)
    most = {name: ("a(st)", [(f"/{name}-{n:02}-".ljust(256, '"'), 1) for n in range(32)]) for name in names}
    known = spec.check(TRUE | most)
    disks = {path: "/dev/block/4294967295:4294967295" for name in names for path, _ in known[name]}
    assert len(control.pack("held", main_pid=1, io_devices=disks)) < control.MAX_PACKET
    with pytest.raises(InvalidSpec, match="8 KiB in all"):
        spec.check(TRUE | {names[0]: ("a(st)", [(f"/{n:02}".ljust(257, "x"), 1) for n in range(32)])})


def test_a_bad_value_is_told_with_its_key_unless_it_may_be_a_secret() -> None:
    with pytest.raises(InvalidSpec, match=r"^MemoryMax=0: must be from 1 to "):
        spec.check_some({"MemoryMax": ("t", 0)})
    with pytest.raises(InvalidSpec) as error:
        spec.check_some({"WorkingDirectory": ("s", "x\n" * 1000)})
    assert str(error.value).startswith("WorkingDirectory='x\\nx\\n")
    assert len(str(error.value)) < 180
    assert "\n" not in str(error.value)
    for bad in ("PASSWORD IS=geheim", "geheim"):
        with pytest.raises(InvalidSpec, match="^Environment: must be NAME=VALUE") as error:
            spec.check_some({"Environment": ("as", [bad])})
        assert "geheim" not in str(error.value)
        with pytest.raises(InvalidSpec) as error:
            spec.from_unit_file(f"Environment={bad}")
        assert "geheim" not in str(error.value)


def test_lists_grow_and_the_rest_is_replaced() -> None:
    values: spec.Values = {}
    for name, value in (("Environment", ["A=1"]), ("Environment", ["B=2"]), ("Nice", 1), ("Nice", 2)):
        spec.merge(values, name, value)
    assert values == {"Environment": ["A=1", "B=2"], "Nice": 2}


@given(st.text(max_size=60))
def test_no_text_escapes_as_anything_but_an_invalid_spec(text: str) -> None:
    for name in spec.KEYS:
        try:
            spec.from_unit_file(f"{name}={text}")
        except InvalidSpec as error:
            assert "\n" not in str(error) or "\n" in text


def test_every_key_is_spelled_once() -> None:
    spellings = [key.spelling or key.name for key in spec.KEYS.values()]
    assert len(set(spellings)) == len(spellings)
