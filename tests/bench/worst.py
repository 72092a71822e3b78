"""`make bench ARGS=worst`: the dearest call of every method at the largest history that the quotas allow.

The service is on a private bus, with three users who have so many canceled jobs each, of 32 labels. For each call:
its own time, the longest callback of the service's loop meanwhile (by the clock, and of its own thread), and the
longest that another user's Status took.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import jeepney
from house import open_house, private_bus
from jeepney.io.blocking import open_dbus_connection

from jobsvc import daemon, ending, model, rundir, watcher
from jobsvc.model import Finished, Job, Queued, Result, Run, User
from jobsvc.packing import UPSERT, pack_job, pack_run
from jobsvc.store import Store

USERS = {"mallory": 2001, "bob": 2002, "alice": 2003}
LABELS = {f"label{n}": f"a value that many jobs have {n}" for n in range(31)}
STOP = multiprocessing.get_context("fork").Event()


def history(path: Path, count: int, indexed: bool) -> None:
    store = Store(path)
    store._db.execute("PRAGMA synchronous=OFF")
    store._db.execute("PRAGMA wal_autocheckpoint=1000")
    for number in range(count * len(USERS)):
        name = list(USERS)[number % len(USERS)]
        owner = User(USERS[name], name)
        spec = {"Command": ["true"], "Labels": {**LABELS, "number": str(number)}, "WorkingDirectory": "/home"}
        now = int(time.time() * 1e6)
        job = Job(f"{number:016x}", owner, owner, owner.uid, spec, now, "r", run=Run(1, Queued("")), seq=number)
        job = model.finish(job, Finished(Result.CANCELED, at=now + 5))
        if number % 5000 == 0:
            if number:
                store._db.execute("COMMIT")
            store._db.execute("BEGIN")
        store._db.execute(UPSERT, pack_job(job))
        store._db.execute("INSERT INTO runs VALUES (?, 1, ?)", (job.id, pack_run(job.run)))
    store._db.execute("COMMIT")
    store.seq = count * len(USERS)
    begin = time.monotonic()
    while indexed and store.marks.enter():
        pass
    store.close()
    size = path.stat().st_size / 2**20
    print(f"{count} jobs of each of {len(USERS)} users, {size:.0f} MiB, indexed in {time.monotonic() - begin:.1f} s")


def serve(address: str, folder: Path, control: Connection) -> None:
    """The service; answers everything that it is asked with what was slowest since."""
    sys.setswitchinterval(daemon.SWITCH)
    for module, name in ((ending, "REPORTS"), (rundir, "RUNS")):
        (folder / name).mkdir()
        setattr(module, name, folder / name)
    worst = [(0.0, 0.0, "")]

    def told(callback: Any, took: float, used: float) -> None:
        worst[0] = max(worst[0], (took, used, watcher.name(callback)))

    async def main() -> None:
        async with open_house(address, folder) as house:
            house.polkit.denied.add("org.jobsvc1.view")
            loops = [asyncio.create_task(house.manager.store.marks.keep())]
            over = asyncio.Event()

            def asked() -> None:
                if control.recv() is None:
                    over.set()
                control.send(worst[0])
                worst[0] = (0.0, 0.0, "")

            watcher.watch(0.001, told)
            asyncio.get_running_loop().add_reader(control.fileno(), asked)
            control.send(None)
            await over.wait()
            for task in loops:
                task.cancel()

    asyncio.run(main())


class Client:
    """A connection as one of the users, in a process of its own."""

    def __init__(self, address: str, user: str) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("fork").Process(
            target=self._work, args=(address, USERS[user], theirs), daemon=True
        )
        self.process.start()

    def _work(self, address: str, uid: int, pipe: Connection) -> None:
        os.setgid(uid)
        os.setuid(uid)
        self.bus = open_dbus_connection(address)
        while (work := pipe.recv()) is not None:
            try:
                pipe.send(getattr(self, work[0])(*work[1:]))
            except Exception as error:
                pipe.send(repr(error)[:200])

    def call(self, member: str, signature: str = "", body: tuple[Any, ...] = (), path: str = "/org/jobsvc1") -> Any:
        interface = "org.freedesktop.DBus.Introspectable" if member == "Introspect" else "org.jobsvc1.Manager"
        if member in ("Get", "GetAll"):
            interface = "org.freedesktop.DBus.Properties"
        place = jeepney.DBusAddress(path, "org.jobsvc1", interface)
        message = jeepney.new_method_call(place, member, signature or None, body)
        reply = self.bus.send_and_get_reply(message, timeout=180)
        if reply.header.message_type is jeepney.MessageType.error:
            raise RuntimeError(reply.body[0])
        return reply.body

    def timed(self, member: str, *arguments: Any) -> tuple[float, str]:
        begin = time.monotonic()
        try:
            answer = summary(self.call(member, *arguments))
        except RuntimeError as error:
            answer = str(error)[:60]
        return time.monotonic() - begin, answer

    def at_once(self, count: int, member: str, signature: str, body: tuple[Any, ...]) -> tuple[float, str]:
        """So many calls at one time."""
        place = jeepney.DBusAddress("/org/jobsvc1", "org.jobsvc1", "org.jobsvc1.Manager")
        begin = time.monotonic()
        for _ in range(count):
            self.bus.send(jeepney.new_method_call(place, member, signature, body))
        kinds = [self.bus.receive(timeout=180).header.message_type.name for _ in range(count)]
        return time.monotonic() - begin, f"{kinds.count('method_return')} of {count}"

    def listen(self) -> int:
        self.call("Subscribe")
        return 0

    def look(self, job_id: str) -> float:
        """The longest that Status took until told to stop."""
        longest = 0.0
        while not STOP.is_set():
            begin = time.monotonic()
            self.call("Status", "sa{sv}", (job_id, {}))
            longest = max(longest, time.monotonic() - begin)
            time.sleep(0.005)
        return longest

    def do(self, *work: Any) -> Any:
        self.pipe.send(work)
        return self.pipe.recv()


def summary(body: tuple[Any, ...]) -> str:
    return ", ".join(f"{len(part)} parts" if isinstance(part, list | dict | str) else str(part) for part in body[:1])


def calls() -> list[tuple[str, tuple[Any, ...]]]:
    b, u, t = ("b", True), "u", "t"

    def s(text: str) -> tuple[str, str]:
        return "s", text

    filters = {
        "32 labels": {"Labels": ("a{ss}", {**LABELS, "no": "such"})},
        "31 labels of all": {"Labels": ("a{ss}", LABELS)},
        "nothing": {},
        "a name": {"Name": s("*a*b*c*d*e*")},
        "a state": {"State": ("as", ["failed"])},
        "hooks": {"Hooks": b},
        "no hooks": {"Hooks": ("b", False)},
        "another user": {"User": s("root")},
        "since": {"ChangedSince": (t, 1)},
    }
    rows = []
    for member in ("Count", "List", "Stats"):
        page = {"Limit": (u, 500)} if member == "List" else {}
        rows += [
            (f"{member} of {name}", ("timed", member, "a{sv}", (page | terms,))) for name, terms in filters.items()
        ]
    rows.append(("10 Stats at once", ("at_once", 10, "Stats", "a{sv}", ({},))))
    rows.append(("20 List of 500 at once", ("at_once", 20, "List", "a{sv}", ({"Limit": (u, 500)},))))
    true = {"Command": ("as", ["true"]), "Labels": ("a{ss}", {**LABELS, "number": "x"}), "Hold": b}
    rows.append(("Start", ("timed", "Start", "a{sv}", (true,))))
    large = {"Command": ("as", ["x"] * 170_000), "Hold": b}
    rows.append(("Start of 170,000 words", ("timed", "Start", "a{sv}", (large,))))
    rows += [("StartMany of 1000", ("timed", "StartMany", "aa{sv}a{sv}", ([true] * 1000, {})))] * 4
    rows.append(("HoldMany", ("timed", "HoldMany", "asa{sv}", ([], {"State": ("as", ["queued"])}))))
    rows.append(("List of 500 queued", ("timed", "List", "a{sv}", ({"Limit": (u, 500), "State": ("as", ["queued"])},))))
    rows.append(("Introspect", ("timed", "Introspect", "", (), "/org/jobsvc1/job")))
    rows.append(("StopMany of 4000", ("timed", "StopMany", "asa{sv}", ([], {"State": ("as", ["queued"])}))))
    first = {**true, "Name": s("first")}
    after = {**true, "Dependencies": ("a(ss)", [("@0", "success")])}
    rows.append(("StartMany that waits", ("timed", "StartMany", "aa{sv}a{sv}", ([first] + [after] * 999, {}))))
    rows.append(("Stop of what 999 wait for", ("timed", "StopMany", "asa{sv}", ([], {"Name": s("first")}))))
    rows.append(("RestartMany of all", ("timed", "RestartMany", "asa{sv}", ([], {"State": ("as", ["stopped"])}))))
    rows.append(("StopMany, 30 subscribers", ("timed", "StopMany", "asa{sv}", ([], {"State": ("as", ["queued"])}))))
    rows.append(("RemoveMany of all", ("timed", "RemoveMany", "asa{sv}", ([], {"State": ("as", ["stopped"])}))))
    rows.append(("Reload", ("timed", "Reload")))
    return rows


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make bench ARGS=worst", description=__doc__)
    parser.add_argument("--jobs", type=int, default=60_000, help="of each user")
    parser.add_argument("--only", default="", help="calls whose name has this in it")
    parser.add_argument("--late", action="store_true", help="begin with a history that is not in the index yet")
    options = parser.parse_args(argv)
    for name, uid in USERS.items():
        subprocess.run(["useradd", "-u", str(uid), name], check=False, stderr=subprocess.DEVNULL)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        measure(Path(folder), options)


def measure(folder: Path, options: argparse.Namespace) -> None:
    history(folder / "jobs.db", options.jobs, not options.late)
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()
    with private_bus(folder) as address:
        (folder / "bus").chmod(0o666)
        service = fork.Process(target=serve, args=(address, folder, theirs), daemon=True)
        service.start()
        ours.recv()
        mallory, alice = Client(address, "mallory"), Client(address, "alice")
        print(f"{'call':32} {'own time':>9} {'loop':>8} {'its own':>8} {'other':>8}  slowest, answer")
        for name, work in calls():
            if options.only not in name:
                continue
            if "subscribers" in name:
                listeners = [Client(address, "mallory") for _ in range(30)]
                for one in listeners:
                    one.do("listen")
            row(name, work, ours, mallory, alice)
        ours.send(None)
        ours.recv()
        service.join(10)


def row(name: str, work: tuple[Any, ...], service: Connection, mallory: Client, alice: Client) -> None:
    STOP.clear()
    alice.pipe.send(("look", f"{2:016x}"))
    time.sleep(0.05)
    service.send("reset")
    service.recv()
    took, said = mallory.do(*work)
    service.send("look")
    stalled, used, what = service.recv()
    STOP.set()
    other = alice.pipe.recv()
    print(
        f"{name:32} {took:8.2f}s {stalled * 1000:6.0f}ms {used * 1000:6.0f}ms {other * 1000:6.0f}ms  {what}; {said}",
        flush=True,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
