"""Limits changed while a job runs hold at once, and are back when one cannot be had; a pause is one."""

from typing import Any

from story import in_state, inside, start

from machine.vm import VM

MB = 1_000_000


def change(job: str, steps: list[dict[str, Any]]) -> list[Any]:
    """Make these changes one after the other; for each the complaint or "", and the share of a CPU then used."""
    bus = Bus()  # noqa: F821
    typed = {"ay": bytes, "a(st)": lambda pairs: [tuple(pair) for pair in pairs]}
    told = []
    for step in steps:
        keys = {name: (kind, typed.get(kind, lambda same: same)(value)) for name, (kind, value) in step.items()}
        try:
            bus.call("SetProperties", "sa{sv}a{sv}", job, keys, {})
            complaint = ""
        except Exception as error:
            complaint = str(error)
        used, at = bus.status(job)["Usage"]["CPUUsageNSec"][1], time.monotonic_ns()  # noqa: F821
        time.sleep(3)  # noqa: F821
        used = bus.status(job)["Usage"]["CPUUsageNSec"][1] - used
        told.append([complaint, used / (time.monotonic_ns() - at)])  # noqa: F821
    return told


def files(vm: VM, job: str, *names: str) -> list[str]:
    group = f"/sys/fs/cgroup/jobsvc.slice/jobsvc-u1000.slice/jobsvc-{job}-1.scope"
    return [vm.read(f"{group}/{name}").decode().strip() for name in names]


def test_live_limits_are_in_force(vm: VM) -> None:
    job = start(vm, "--memory", "300M", "--", "sh", "-c", "while :; do :; done")
    steps: list[dict[str, Any]] = [
        {"CPUQuotaPerSecUSec": ["t", 200_000]},
        {
            "CPUQuotaPerSecUSec": ["t", 2**64 - 1],
            "MemoryMax": ["t", 200 * MB],
            "TasksMax": ["t", 7],
            "IOReadBandwidthMax": ["a(st)", [["/", 2 * MB]]],
            "AllowedCPUs": ["ay", [1]],
        },
        {"AllowedCPUs": ["ay", [0] * 7 + [128]], "MemoryMax": ["t", 100 * MB]},
    ]
    in_state(vm, job, "running")  # before that it has used nothing
    slow, fast, refused = inside(vm, change, job, steps, timeout=100)
    assert slow[0] == "", slow
    assert 0.05 <= slow[1] <= 0.45, slow  # what the host takes from the emulator meanwhile counts as used
    assert fast[0] == "", fast
    assert fast[1] > 0.5, fast
    assert "AllowedCPUs cannot be put in force" in refused[0], refused
    memory, tasks, cpus, io = files(vm, job, "memory.max", "pids.max", "cpuset.cpus.effective", "io.max")
    assert (int(memory) // 4096, tasks, cpus) == (200 * MB // 4096, "7", "0")
    assert "rbps=2000000" in io
    vm.run("systemctl", "daemon-reload")
    assert files(vm, job, "memory.max", "pids.max") == [memory, tasks]
    vm.run("jobctl", "stop", job)
