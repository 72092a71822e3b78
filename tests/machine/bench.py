"""`make bench`: tests/bench in a machine of its own, as root, with the package and its rivals."""

import io
import sys
import tarfile

from machine import build
from machine.host import DEFAULT_SUITE, TREE, HostError, need
from machine.nspawn import installed

_PLACE = "/usr/local/lib/jobsvc-bench"


def main(argv: list[str]) -> int:
    """Run the directory tests/bench there with these arguments."""
    if argv[:1] == ["worst"]:
        return worst(argv[1:])
    need("mmdebstrap", "systemd-nspawn", "unshare", "git")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(TREE / "tests" / "bench", arcname=".")
    with installed(DEFAULT_SUITE, build.package(DEFAULT_SUITE)) as machine:
        machine.run("mkdir", _PLACE)
        machine.run("tar", "xf", "-", "-C", _PLACE, input=packed.getvalue())
        with machine.popen("python3", _PLACE, *argv, stdout=None, stderr=None) as process:
            return process.wait()


def worst(argv: list[str]) -> int:
    """The dearest calls, on a private bus: no machine is needed."""
    need("mmdebstrap", "unshare", "git")
    with build.Tools(DEFAULT_SUITE) as tools:
        path = "PYTHONPATH=/src/tests:/src/tests/bus"
        return tools.run(["env", path, "PYTHONUNBUFFERED=1", "python3", "-m", "bench.worst", *argv]).returncode


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except HostError as error:
        sys.exit(f"error: {error}")
