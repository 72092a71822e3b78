"""Runs inside a virtual machine: our hands there, at the end of a virtio-serial port.

One JSON object a line each way. In: {"id", "argv", "user", "env", "cwd", "stdin"} starts a command,
{"id", "signal"} sends it a signal. Out: {"hello": true} at the start, then for each command one
{"id", "status", "stdout", "stderr"}; bytes are in base64.
"""

import base64
import json
import os
import pwd
import subprocess
import sys
import threading
from typing import Any

_PORT = "/dev/virtio-ports/org.jobsvc.agent"


def main() -> None:
    """Serve until the other end goes away."""
    port = open(_PORT, "r+b", buffering=0)  # noqa: SIM115
    lock = threading.Lock()
    running: dict[int, subprocess.Popen[bytes]] = {}

    def answer(packet: dict[str, object]) -> None:
        line = json.dumps(packet).encode() + b"\n"
        with lock:
            while line:
                line = line[port.write(line) :]

    def answer_end(number: int, status: int, stdout: bytes, stderr: bytes) -> None:
        out, err = (base64.b64encode(data).decode() for data in (stdout, stderr))
        answer({"id": number, "status": status, "stdout": out, "stderr": err})

    def serve(number: int, process: "subprocess.Popen[bytes]", stdin: bytes) -> None:
        stdout, stderr = process.communicate(stdin)
        del running[number]
        answer_end(number, process.returncode, stdout, stderr)

    answer({"hello": True})
    pending = b""
    while got := port.read(65536):
        *lines, pending = (pending + got).split(b"\n")
        for line in lines:
            ask = json.loads(line)
            number = ask["id"]
            if "signal" in ask:
                if number in running:
                    os.killpg(running[number].pid, ask["signal"])
                continue
            try:
                process = running[number] = start(ask)
            except (OSError, KeyError) as error:
                answer_end(number, 127, b"", f"{error}\n".encode())
                continue
            stdin = base64.b64decode(ask["stdin"])
            threading.Thread(target=serve, args=(number, process, stdin), daemon=True).start()


def start(ask: dict[str, Any]) -> "subprocess.Popen[bytes]":
    """The command, as its user, in the home directory, with the environment of a login shell."""
    account = pwd.getpwnam(ask["user"])
    env = {
        "HOME": account.pw_dir,
        "LANG": "C.UTF-8",
        "LOGNAME": account.pw_name,
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "SHELL": account.pw_shell,
        "USER": account.pw_name,
    }
    return subprocess.Popen(
        ask["argv"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env | ask["env"],
        cwd=ask["cwd"] or account.pw_dir,
        user=account.pw_uid,
        group=account.pw_gid,
        extra_groups=os.getgrouplist(account.pw_name, account.pw_gid),
        start_new_session=True,
    )


if __name__ == "__main__":
    main()
    sys.exit(0)
