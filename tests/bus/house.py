"""A private bus with the real service on it; polkit, systemd and the launcher are played."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import jobsvc
from jobsvc import bus, service
from jobsvc.authority import Authority
from jobsvc.callers import Caller, Callers
from jobsvc.config import Config
from jobsvc.errors import AccessDenied, Internal
from jobsvc.inputs import Inputs
from jobsvc.journal_events import Events
from jobsvc.logs import Logs
from jobsvc.manager import Manager
from jobsvc.model import User
from jobsvc.porters import Porters
from jobsvc.service import Service
from jobsvc.store import Store
from jobsvc.userdb import Account

CONFIG = """<busconfig>
 <type>system</type>
 <listen>unix:path={path}</listen>
 <auth>EXTERNAL</auth>
 <policy context="default">
  <allow user="*"/><allow own="*"/>
  <allow send_type="method_call"/><allow send_type="signal"/>
  <allow send_requested_reply="true" send_type="method_return"/><allow send_requested_reply="true" send_type="error"/>
  <allow receive_type="method_call"/><allow receive_type="method_return"/>
  <allow receive_type="error"/><allow receive_type="signal"/>
 </policy>
</busconfig>
"""


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a dbus-daemon of our own."""
    with private_bus(tmp_path_factory.mktemp("bus")) as at:
        yield at


@contextlib.contextmanager
def private_bus(folder: Path) -> Iterator[str]:
    (folder / "bus.conf").write_text(CONFIG.format(path=folder / "bus"))
    command = ["dbus-daemon", f"--config-file={folder / 'bus.conf'}", "--nofork", "--print-address"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout
        daemon.stdout.readline()
        yield f"unix:path={folder / 'bus'}"
        daemon.terminate()


class Polkit:
    """Says yes or no to everything, and remembers what it was asked."""

    def __init__(self) -> None:
        self.says = True
        self.denied: set[str] = set()  # also if it says yes
        self.asked: list[tuple[str, dict[str, str]]] = []

    async def check(self, caller: Caller, action: str, details: dict[str, str], interactive: bool) -> None:
        self.asked.append((str(action), details))
        if not self.says or str(action) in self.denied:
            raise AccessDenied(f"polkit does not allow {action}")


class Systemd:
    remembers_memory_peak = True

    async def stop(self, unit: str, seconds: float | None) -> None: ...


class Launcher:
    """Nothing starts here but porters."""

    def __init__(self) -> None:
        self.porters: list[subprocess.Popen[bytes]] = []

    async def launch(self, run: str) -> int:
        raise Internal("nothing starts here")

    async def porter(self, channel: int) -> int:
        code = "import sys; from jobsvc import porter; porter.enter(int(sys.argv[1]))"
        argv = [sys.executable, "-c", code, str(channel)]
        self.porters.append(subprocess.Popen(argv, cwd=Path(jobsvc.__file__).parents[1], pass_fds=[channel]))
        return self.porters[-1].pid

    def close(self) -> None:
        for process in self.porters:
            process.kill()
            process.wait()


class House:
    """The service and a client of it."""

    def __init__(self, address: str, door: Service, client: bus.Bus, polkit: Polkit) -> None:
        self.address, self.door, self.client, self.polkit = address, door, client, polkit
        desk = door.desk
        self.manager, self.callers, self.authority = desk.manager, desk.callers, desk.authority

    async def call(self, member: str, signature: str = "", *body: Any, path: str = service.ROOT) -> list[Any]:
        name = member if "." in member else f"{service.MANAGER}.{member}"
        return await self.client.ask("org.jobsvc1", path, name, signature, body, timeout=20)


def pretend(house: House, name: str = "mallory", uid: int = 4242) -> None:
    """Have the caller be somebody else than root."""
    caller = User(uid, name)

    async def account(uid: int) -> Account:
        return Account(caller, caller.uid, "/", frozenset({caller.uid}))

    ask = house.callers._users.account

    async def named(who: int | str, asker: int) -> Account:
        return await account(uid) if who in (uid, name) else await ask(who, asker)

    house.callers._uids[house.client.unique_name] = uid
    house.callers.account = account  # type: ignore[method-assign]
    house.callers._users.account = named  # type: ignore[method-assign]


@contextlib.asynccontextmanager
async def another(house: House) -> AsyncIterator[Callable[..., Awaitable[list[Any]]]]:
    """A second connection of whoever the first one is of, and its calls."""
    client = await bus.Bus(house.address).open()
    house.callers._uids[client.unique_name] = house.callers._uids[house.client.unique_name]

    async def call(member: str, signature: str = "", *body: Any) -> list[Any]:
        return await client.ask("org.jobsvc1", service.ROOT, f"{service.MANAGER}.{member}", signature, body, timeout=20)

    try:
        yield call
    finally:
        client.disconnect()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def open_house(address: str, folder: Path) -> AsyncIterator[House]:
    launcher = Launcher()
    porters = Porters(launcher)  # type: ignore[arg-type]
    porters.prepare()
    public = await bus.Bus(address, fds=True, cap=service.cap, carrier=porters).open()
    client = await bus.Bus(address, fds=True, addressed=True).open()
    aside = await bus.Bus(address).open()
    callers = Callers(public, aside)
    config = Config()
    polkit = Polkit()
    store = Store(folder / "jobs.db")
    events = Events(str(folder / "no-journal"))
    jobs = Manager(config, store, Systemd(), launcher, events, Inputs(porters))  # type: ignore[arg-type]
    authority = Authority(polkit, callers, config)  # type: ignore[arg-type]
    logs = Logs()
    try:
        async with asyncio.TaskGroup() as tasks:
            door = Service(public, callers, authority, jobs, logs, tasks)
            await public.match("type='signal',sender='org.freedesktop.DBus',member='NameOwnerChanged',arg2=''")
            await public.own("org.jobsvc1")
            yield House(address, door, client, polkit)
            door.close()
            await jobs.close()
    finally:
        logs.close()
        store.close()
        for connection in (client, aside, public):
            connection.disconnect()
        porters.close()
        launcher.close()


Scenario = Callable[[House], Awaitable[None]]


@pytest.fixture(name="house")
def house_fixture(
    request: pytest.FixtureRequest, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Scenario], None]:
    """Runs a scenario against the service on the private bus; its queue stays shut."""
    from jobsvc import ending, inputs, rundir

    for module, name in ((ending, "REPORTS"), (rundir, "RUNS")):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(module, name, tmp_path / name)
    short = tempfile.TemporaryDirectory()  # for the names of sockets
    request.addfinalizer(short.cleanup)
    monkeypatch.setattr(inputs, "FOLDER", Path(short.name))

    def run(scenario: Scenario) -> None:
        async def main() -> None:
            async with open_house(address, tmp_path) as opened:
                await scenario(opened)

        asyncio.run(main())

    return run
