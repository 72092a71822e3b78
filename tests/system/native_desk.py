"""Runs in the machine, as root, after journal_contract.py: its checks against the real journal."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

from jobsvc.chunks import Stream
from jobsvc.journal import Reader, Source
from journal_contract import CHECKS

SOCKET = "/run/systemd/journal.jobsvc/socket"
UID = 1000


def field(name: bytes, value: bytes) -> bytes:
    return name + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"


class NativeDesk:
    """Sends what a supervisor would, with another process's credentials, and waits until it is there."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.connect(SOCKET)
        self._main = subprocess.Popen(["sleep", "infinity"])
        self._boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
        self._runs = 0
        self._reader = self.reader()

    def close(self) -> None:
        self._main.kill()
        self._main.wait()

    def source(self) -> Source:
        self._runs += 1
        return Source(f"{time.time_ns():016x}", 1, UID, self._main.pid, self._boot_id)

    def put(self, source: Source, data: bytes, stream: Stream, offset: int) -> int:
        fields = {
            b"MESSAGE": data,
            b"JOBSVC_ID": source.id.encode(),
            b"JOBSVC_RUN": b"%d" % source.run,
            b"JOBSVC_STREAM": stream.encode(),
            b"JOBSVC_OFFSET": b"%d" % offset,
        }
        sender = struct.pack("iII", source.main_pid or 0, source.uid, source.uid)
        rights = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, sender)]
        self._socket.sendmsg([field(name, value) for name, value in fields.items()], rights)
        return self._time(source, stream, offset)

    def reader(self) -> Reader:
        return Reader.open()

    def _time(self, source: Source, stream: Stream, offset: int) -> int:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            for chunk in self._reader.backward(source, [stream]):
                if chunk.offset == offset:
                    return chunk.time_usec
            time.sleep(0.001)
        raise TimeoutError(f"the journal does not show {stream} {offset} of {source}")


desk = NativeDesk()
try:
    for check in CHECKS:
        check(desk)
finally:
    desk.close()
json.dump([check.__name__ for check in CHECKS], sys.stdout)
