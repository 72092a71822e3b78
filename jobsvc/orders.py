"""What peers ask of a run, and what they are told when they ask."""

from __future__ import annotations

from jobsvc import control
from jobsvc.lookup import Lookup
from jobsvc.record import Phase
from jobsvc.verdict import StartError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

    from jobsvc.peers import Peer
    from jobsvc.supervisor import Supervisor

MOST_LOOKUPS: Final = 2  # of one run at one time


class Orders:
    """The Subject of the control socket. What is unknown, or comes too late, is passed over."""

    def __init__(self, run: Supervisor) -> None:
        self.run = run
        self.lookups: list[Lookup] = []

    def hello(self) -> bytes:
        return self.run.record.hello()

    def offsets(self) -> bytes:
        record = self.run.record
        stdout, stderr = record.sent()
        return control.pack("offsets", stdout=stdout, stderr=stderr, journal_bytes=record.journal_bytes)

    def dropped(self) -> None:
        self.run.nobody()
        self.run.attend()

    def told(self, peer: Peer, packet: dict[str, Any], fds: list[int]) -> None:
        """One packet. Descriptors that are not taken out of the list are closed."""
        run = self.run
        record = run.record
        match packet["type"]:
            case "hello":
                peer.looks = bool(packet.get("looks"))
                run.attend()
            case "go":
                run.go(str(packet.get("control_group") or ""))
            case "follow":
                peer.follows = bool(packet.get("on"))
                run.peers.owe_offsets(peer)
            case "stat":
                run.peers.owe_offsets(peer)
            case "ask":
                self.asked(peer, packet, fds)
            case _ if record.over:
                return
            case "abort" if not record.begun:
                run.fail(StartError("abort", str(packet.get("text"))))
            case "stop" if run.warden is not None:
                run.warden.stop(str(packet.get("reason") or ""))
            case "stop":
                run.call_off(str(packet.get("reason") or ""))
            case "look" if run.warden is not None:
                run.warden.look_inside()
            case "signal" if run.warden is not None and isinstance(packet.get("signal"), int):
                run.main.signal(packet["signal"])
                run.warden.freezer.thaw()  # it is what a paused one sees first

    def asked(self, peer: Peer, packet: dict[str, Any], fds: list[int]) -> None:
        """An order that wants an answer: type "ask" with a number and what, → "answer" with the number and an error."""

        def answer(error: str, **facts: Any) -> None:
            self.run.peers.answer(peer, control.pack("answer", ask=packet.get("ask"), error=error, **facts))

        record, warden = self.run.record, self.run.warden
        match packet.get("what"):
            case _ if record.over or warden is None:
                answer("it does not run")
            case "pause" if record.phase is Phase.RUNNING:
                warden.freezer.pause(answer)
            case "pause":
                answer("it is being stopped")
            case "resume":
                warden.freezer.thaw(answer)
            case "bounds":
                if "runtime_max_usec" in packet:
                    record.clock.limit_usec = packet["runtime_max_usec"]
                    warden.set_deadline()
                if "timeout_stop_usec" in packet:
                    warden.set_stop_timeout(packet["timeout_stop_usec"])
                if "output_left" in packet and record.started_usec is not None:
                    left = packet["output_left"]
                    self.run.capture.post(lambda: self.run.capture.on_bound(left))
                answer("")
            case "resolve":
                self.look_up([str(path) for path in packet.get("paths") or ()], answer)
            case "attach" if fds and self.run.request.terminal is not None:
                self.run.capture.attach(fds[0], answer)
            case what:
                answer(f"its supervisor does not know how to do {what!r}")

    def look_up(self, paths: list[str], answer: Callable[..., None]) -> None:
        """Which disks these paths are on. One that hangs is not asked for again and again."""
        self.lookups = self.hanging()
        if len(self.lookups) >= MOST_LOOKUPS:
            answer("look-ups of its paths hang already, on a file system that does not answer")
            return
        account = self.run.beginning.account
        found = Lookup(self.run.events, account, paths, lambda error, disks: answer(error, io_devices=disks))
        self.lookups.append(found)

    def hanging(self) -> list[Lookup]:
        """The look-ups whose child is still there."""
        return [one for one in self.lookups if not one.ended]
