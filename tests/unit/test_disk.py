"""From a device number to the whole disk, as systemd maps it; a tree of links stands in for sysfs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobsvc import disk


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    block = tmp_path / "block"
    block.mkdir()
    monkeypatch.setattr(disk, "BLOCK", str(block))
    return tmp_path


def device(sysfs: Path, path: str, number: str, slaves: tuple[str, ...] = ()) -> None:
    node = sysfs / "devices" / path
    node.mkdir(parents=True)
    (node / "dev").write_text(number + "\n")
    if "/" in path:
        (node / "partition").write_text("1\n")
    (sysfs / "block" / number).symlink_to(node)
    for slave in slaves:
        (node / "slaves").mkdir(exist_ok=True)
        (node / "slaves" / os.path.basename(slave)).symlink_to(sysfs / "devices" / slave)


def test_a_disk_is_itself_and_a_partition_is_its_disk(sysfs: Path) -> None:
    device(sysfs, "vda", "254:0")
    device(sysfs, "vda/vda1", "254:1")
    assert disk.whole_disk(254, 0) == "/dev/block/254:0"
    assert disk.whole_disk(254, 1) == "/dev/block/254:0"


def test_lvm_on_luks_on_a_partition_is_the_disk(sysfs: Path) -> None:
    device(sysfs, "sda", "8:0")
    device(sysfs, "sda/sda2", "8:2")
    device(sysfs, "dm-0", "253:0", ("sda/sda2",))
    device(sysfs, "dm-1", "253:1", ("dm-0",))
    assert disk.whole_disk(253, 1) == "/dev/block/8:0"


def test_a_volume_over_two_disks_is_itself(sysfs: Path) -> None:
    for letter, minor in (("a", 0), ("b", 16)):
        device(sysfs, f"sd{letter}", f"8:{minor}")
        device(sysfs, f"sd{letter}/sd{letter}1", f"8:{minor + 1}")
    device(sysfs, "dm-0", "253:0", ("sda/sda1", "sdb/sdb1"))
    assert disk.whole_disk(253, 0) == "/dev/block/253:0"


def test_two_partitions_of_one_disk_are_that_disk(sysfs: Path) -> None:
    device(sysfs, "sda", "8:0")
    device(sysfs, "sda/sda1", "8:1")
    device(sysfs, "sda/sda2", "8:2")
    device(sysfs, "dm-0", "253:0", ("sda/sda1", "sda/sda2"))
    assert disk.whole_disk(253, 0) == "/dev/block/8:0"


def test_what_has_no_disk_is_an_error_that_says_so(sysfs: Path) -> None:
    with pytest.raises(OSError, match="disk"):
        disk.device_of("/proc")
    with pytest.raises(FileNotFoundError):
        disk.device_of("/no/such")
    with pytest.raises(FileNotFoundError):
        disk.whole_disk(99, 99)
