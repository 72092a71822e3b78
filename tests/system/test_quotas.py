"""Each quota of jobsvc.conf(5), set low and reached: an error of its own that names its key."""

from collections.abc import Iterator
from typing import Any

import pytest
from story import assert_nothing_left, inside, jobctl, systemctl

from machine.nspawn import Machine

CONF = "/etc/jobsvc/jobsvc.conf.d/60-story.conf"


@pytest.fixture(autouse=True)
def nothing_left(machine: Machine) -> Iterator[None]:
    yield
    machine.run("rm", "-f", CONF)
    systemctl(machine, "reload", "jobsvc.service")
    assert_nothing_left(machine)


def reach(key: str, attempts: int) -> list[list[str]]:
    """So many attempts at what this key bounds, all of them under way at once: the error of each, or nothing."""
    hold = {"Hold": ("b", True), "Command": ("as", ["true"])}
    long = {"Command": ("as", ["true", "x" * 3000])}
    root = {"Command": ("as", ["true"]), "User": ("s", "root")}
    first, buses, told, kept = Bus(), [], [], []  # noqa: F821
    job = first.start("true", Hold=("b", True)) if key in ("MaxCallsPerUser", "MaxFollowersPerUser") else ""
    calls: dict[str, tuple[Any, ...]] = {
        "MaxQueued": ("Start", "a{sv}", hold),
        "MaxQueuedPerUser": ("Start", "a{sv}", hold),
        "MaxQueuedBytesPerUser": ("Start", "a{sv}", hold | long),
        "MaxCommandBytes": ("Start", "a{sv}", long),
        "MaxCallsPerUser": ("ReadLogs", "sa{sv}", job, {"WaitUSec": ("t", 5_000_000)}),
        "MaxInputsPerUser": ("Start", "a{sv}", hold | {"StandardInput": ("h", 0)}),
        "MaxQuestionsPerUser": ("Start", "a{sv}", root),
        "MaxSubscribersPerUser": ("Subscribe", ""),
        "MaxFollowersPerUser": ("Logs", "sa{sv}", job, {"Follow": ("b", True)}),
    }
    for _ in range(attempts):
        buses.append(Bus())  # noqa: F821
        buses[-1].call("Ping", of="org.freedesktop.DBus.Peer")
    serials = [bus.send(*calls[key], flags=4) for bus in buses]
    for bus, serial in zip(buses, serials, strict=True):
        try:
            kept.append(bus.reply(serial))  # an output that is closed is followed no more
            told.append(["", ""])
        except Refused as error:  # noqa: F821
            told.append([error.name, error.text])
    first.call("StopMany", "asa{sv}", [], {"State": ("as", ["queued"])})
    return told


# The value, how often it is tried, how often that works, and what it is answered with after that.
QUOTAS = {
    "MaxQueued": ("3", 5, 3, "QueueFull"),
    "MaxQueuedPerUser": ("3", 5, 3, "Quota"),
    "MaxQueuedBytesPerUser": ("16K", 8, None, "Quota"),
    "MaxCommandBytes": ("1K", 2, 0, "InvalidSpec"),
    "MaxCallsPerUser": ("3", 5, 3, "Quota"),
    "MaxInputsPerUser": ("3", 5, 3, "Quota"),
    "MaxQuestionsPerUser": ("0", 2, 0, "Quota"),
    "MaxSubscribersPerUser": ("2", 4, 2, "Quota"),
    "MaxFollowersPerUser": ("2", 4, 2, "Quota"),
}


@pytest.mark.one_suite
def test_every_quota_is_reached_with_an_error_that_names_it(machine: Machine) -> None:
    for key, (value, attempts, works, error) in QUOTAS.items():
        machine.write(CONF, f"[Manager]\n{key}={value}\n")
        systemctl(machine, "reload", "jobsvc.service")
        told = inside(machine, reach, key, attempts, user="bob")
        refused = [one for one in told if one[0]]
        assert refused, (key, told)
        assert works is None or len(told) - len(refused) == works, (key, told)
        for name, text in refused:
            assert name == error, (key, told)
            assert f"{key}=" in text, (key, text)
            assert "\n" not in text
        # It was bob's; alice's, with nothing of hers there, has room. What is everybody's is free again.
        if works != 0:
            assert jobctl(machine, "run", "--", "echo", "here").stdout == b"here\n", key


@pytest.mark.one_suite
def test_root_is_not_counted(machine: Machine) -> None:
    for key in QUOTAS.keys() - {"MaxQueued", "MaxCommandBytes"}:
        value, attempts, *_ = QUOTAS[key]
        machine.write(CONF, f"[Manager]\n{key}={value}\n")
        systemctl(machine, "reload", "jobsvc.service")
        told = inside(machine, reach, key, attempts, user="root")
        assert {name for name, _ in told} == {""}, (key, told)
