"""The connection survives what dbus-next alone does not."""

from __future__ import annotations

import asyncio
import io
import os
import random
import socket
from typing import Any

import pytest
from dbus_next import Message
from dbus_next.constants import MessageFlag
from dbus_next.signature import SignatureTree, Variant

from jobsvc import bus
from jobsvc.bus import Bus, BusError, Call

ECHO = "org.example.Echo"


async def pair(address: str, answer: Any = None, **options: Any) -> tuple[Bus, Bus]:
    """A server that answers every call, and a client."""
    server, client = await Bus(address, **options).open(), await Bus(address, fds=True).open()

    def echo(call: Call) -> None:
        if call.too_big or call.broken:
            server.send_error(call, ECHO + ".Refused", "too big" if call.too_big else "broken")
        else:
            server.send(Message.new_method_return(call, "s", [answer or "hello"]))

    server.on_call = echo
    return server, client


def test_many_large_answers_at_once_do_not_end_the_connection(address: str) -> None:
    """EAGAIN on a full socket is not an error: 128 answers of 300 kB do not fit any buffer."""

    async def scenario() -> None:
        server, client = await pair(address, "x" * 300_000)
        calls = (client.ask(server.unique_name, "/", f"{ECHO}.Say") for _ in range(128))
        answers = await asyncio.gather(*calls)
        assert {len(body[0]) for body in answers} == {300_000}
        assert server.connected
        server.disconnect()
        client.disconnect()

    asyncio.run(scenario())


def test_a_large_body_is_refused_unread(address: str) -> None:
    async def scenario() -> None:
        server, client = await pair(address, cap=lambda member: 64 * 1024)
        loop, body = asyncio.get_running_loop(), "x" * 8_000_000
        for _ in range(3):
            with pytest.raises(BusError, match="too big"):
                await client.ask(server.unique_name, "/", f"{ECHO}.Say", "s", [body])
        before = loop.time()
        assert (await client.ask(server.unique_name, "/", f"{ECHO}.Say"))[0] == "hello"
        assert loop.time() - before < 5
        server.disconnect()
        client.disconnect()

    asyncio.run(scenario())


def test_an_unknown_header_field_is_ignored(address: str) -> None:
    """The specification says so; upstream ends the connection."""

    async def scenario() -> None:
        server, client = await pair(address)
        message = Message(server.unique_name, "/", ECHO, "Say", serial=client.next_serial())
        data = bytearray(message._marshall())
        # a field 200 of type string, appended to the header's array
        size = int.from_bytes(data[12:16], "little")
        header = data[16 : 16 + size] + bytes(-size % 8)
        header += bytes([200, 1]) + b"s\0" + (2).to_bytes(4, "little") + b"hi\0"
        data = data[:12] + len(header).to_bytes(4, "little") + header + bytes(-len(header) % 8)
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        client._method_return_handlers[message.serial] = lambda answer, _: reply.set_result(answer)
        await asyncio.get_running_loop().sock_sendall(client._sock, bytes(data))
        assert (await asyncio.wait_for(reply, 10)).body == ["hello"]
        assert server.connected
        server.disconnect()
        client.disconnect()

    asyncio.run(scenario())


def test_descriptors_nobody_claims_are_closed(address: str) -> None:
    async def scenario() -> None:
        server, client = await Bus(address, fds=True).open(), await Bus(address, fds=True).open()
        theirs, ours = socket.socketpair()
        for _ in range(50):
            call = Message(server.unique_name, "/", ECHO, "Say", signature="h", body=[0], unix_fds=[theirs.fileno()])
            await client.call(call)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(50):
            call = Message(server.unique_name, "/", ECHO, "Say", signature="h", body=[0], unix_fds=[theirs.fileno()])
            await client.call(call)
        assert len(os.listdir("/proc/self/fd")) <= before
        theirs.close()
        ours.close()
        server.disconnect()
        client.disconnect()

    asyncio.run(scenario())


def test_signatures_that_others_make_up_are_not_kept() -> None:
    choose = random.Random(7)
    values = {"s": "", "o": "/", "g": "", "b": False, "d": 0.0}
    sent = []
    for _ in range(600):
        kinds = choose.choices("ybnqiuxtdsog", k=40)
        value = Variant(f"({''.join(kinds)})", [values.get(kind, 0) for kind in kinds])
        for signature, body in ((value.signature, value.value), ("v", value)):
            sent.append(Message(ECHO, "/", ECHO, "Say", signature=signature, body=[body], serial=1)._marshall())
    known = set(SignatureTree._cache)
    SignatureTree._cache.clear()
    for data in sent:
        call = bus._Reader(io.BytesIO(data), lambda member: 4096, addressed=False).unmarshall()
        assert not call.broken
        assert len(call.body) == 1
    assert SignatureTree._cache.keys() <= known
    assert len(SignatureTree._cache) < 10
    assert bus._tree.cache_info().currsize <= 256


def test_a_flood_lets_others_have_their_turn(address: str) -> None:
    async def scenario() -> None:
        server, client = await pair(address)
        turns, heard = 0, []
        server.on_call = lambda call: heard.append(turns)
        for _ in range(1000):
            client.tell(server.unique_name, "/", f"{ECHO}.Say", "s", ("x",))
        async with asyncio.timeout(120):
            while len(heard) < 1000:
                turns += 1
                await asyncio.sleep(0)
        assert max(heard.count(turn) for turn in set(heard)) <= 2 * bus.MESSAGES_AT_ONCE
        server.disconnect()
        client.disconnect()

    asyncio.run(scenario())


def test_signals_to_a_connection_alone_are_not_even_parsed(address: str) -> None:
    async def scenario() -> None:
        server, client = await pair(address)
        listener = await Bus(address, addressed=True).open()
        heard: list[Call] = []
        for connection in (server, listener):
            connection.on_signal = heard.append
            client.emit(connection.unique_name, "/", f"{ECHO}.Changed", "as", [["x"] * 1000])
            await client.ask_bus("GetId")
            await connection.ask_bus("GetId")
        assert [(call.member, len(call.body[0])) for call in heard if call.sender == client.unique_name] == [
            ("Changed", 1000)
        ]
        for connection in (server, client, listener):
            connection.disconnect()

    asyncio.run(scenario())


def test_nothing_is_answered_where_no_answer_is_wanted(address: str) -> None:
    async def scenario() -> None:
        server, client = await pair(address)
        server.tell(client.unique_name, "/", f"{ECHO}.Say", "v", (Variant("s", "x"),))
        assert (await client.ask(server.unique_name, "/", f"{ECHO}.Say"))[0] == "hello"
        call = Message(server.unique_name, "/", ECHO, "Say", flags=MessageFlag.NO_REPLY_EXPECTED)
        server.send_error(call, ECHO + ".Error", "no")
        assert server.connected
        server.disconnect()
        client.disconnect()

    asyncio.run(scenario())
