"""jobsvcd's end of the sockets to the launcher and the supervisors."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

from jobsvc import control
from jobsvc.launch import Packets


def test_descriptors_wait_with_their_packet_for_room(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(tmp_path / "socket"))
    listener.listen()

    async def scenario() -> None:
        packets = Packets(str(tmp_path / "socket"))
        other, _ = listener.accept()
        other.setblocking(False)
        count = 0
        while not packets._unsent:
            packets.send(b"x" * 10_000)
            count += 1
        woken, waker = os.pipe()
        packets.send(b"with a descriptor", [waker])
        os.close(waker)  # as its owner may, now that it was sent
        got: list[tuple[bytes, list[int]]] = []
        async with asyncio.timeout(60):
            while len(got) <= count:
                try:
                    got.append(control.receive(other))
                except BlockingIOError:
                    await asyncio.sleep(0)
        data, (fd,) = got[-1]
        assert data == b"with a descriptor"
        os.write(fd, b"hello")
        os.close(fd)
        assert os.read(woken, 99) == b"hello"
        assert os.read(woken, 99) == b""  # nobody else has it open
        os.close(woken)
        other.close()
        packets.close()

    asyncio.run(scenario())
    listener.close()
