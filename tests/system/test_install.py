"""The package installs on a bare machine and works there."""

import re

from machine.nspawn import Machine
from machine.vm import VM

_UNITS = ("jobsvc.service", "jobsvc-launcher.socket", "systemd-journald@jobsvc.service")


def _active(machine: Machine | VM) -> list[str]:
    asked = machine.run("systemctl", "is-active", *_UNITS, check=False)
    return asked.stdout.decode().split()


def test_the_units_run_after_apt_install(machine: Machine) -> None:
    assert _active(machine) == ["active"] * 3
    assert machine.run("systemctl", "--failed", "--quiet").stdout == b""


def test_the_bus_name_describes_itself_to_anybody(machine: Machine) -> None:
    shown = machine.run("busctl", "introspect", "org.jobsvc1", "/org/jobsvc1", user="alice").stdout.decode()
    assert "org.jobsvc1.Manager" in shown
    assert re.search(r"^\.Start +method +a\{sv\} +so", shown, re.MULTILINE)


def test_asking_starts_the_service(machine: Machine) -> None:
    machine.run("systemctl", "stop", "jobsvc.service")
    machine.run("busctl", "introspect", "org.jobsvc1", "/org/jobsvc1", user="alice")
    assert _active(machine) == ["active"] * 3


def test_jobctl_is_there_with_its_manual(machine: Machine) -> None:
    assert machine.run("jobctl", "--version", user="alice").stdout.startswith(b"jobctl")
    for page in ("man1/jobctl.1", "man5/jobsvc.conf.5", "man8/jobsvcd.8", "man5/org.jobsvc1.5"):
        assert machine.exists(f"/usr/share/man/{page}.gz")


def test_the_service_has_no_capability_and_little_exposure(machine: Machine) -> None:
    pid = machine.run("systemctl", "show", "-P", "MainPID", "jobsvc.service").stdout.decode()
    status = machine.read(f"/proc/{pid.strip()}/status").decode()
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    shown = machine.run("systemd-analyze", "security", "--no-pager", "jobsvc.service", check=False)
    exposure = re.search(rb"Overall exposure level for jobsvc.service: ([0-9.]+)", shown.stdout)
    assert exposure is not None
    assert float(exposure[1]) <= 1.0


def test_the_catalog_explains_the_events(machine: Machine) -> None:
    listed = machine.run("journalctl", "--list-catalog").stdout.decode()
    assert listed.count(" jobsvc: ") >= 7


def test_it_runs_where_the_kernel_holds_limits(vm: VM) -> None:
    assert vm.limits_hold()
    assert _active(vm) == ["active"] * 3
