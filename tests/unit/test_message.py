"""Our bytes of a message are those of the library."""

import pytest
from dbus_next import Message, Variant
from dbus_next.constants import ErrorType, MessageFlag

from jobsvc.message import pack

STATUS = {
    "Name": Variant("s", "naïve\n"),
    "Command": Variant("as", ["sh", "-c", ""]),
    "Labels": Variant("a{ss}", {"a": "b", "": "x"}),
    "Limits": Variant("a{sv}", {"MemoryMax": Variant("t", 2**64 - 1), "AllowedCPUs": Variant("ay", b"\x03")}),
    "IO": Variant("a(st)", [["/dev/sda", 1], ["/dev/sdb", 2]]),
    "Usage": Variant("a{sv}", {}),
    "Hold": Variant("b", True),
    "ExitCode": Variant("i", -1),
    "Nested": Variant("v", Variant("v", Variant("o", "/a"))),
}
BODIES = [
    ("", []),
    ("ssa(sv)a(sa(sv))", ["x.scope", "fail", [["PIDs", Variant("au", [7])], ["AddRef", Variant("b", True)]], []]),
    ("sa{sv}as", ["org.jobsvc1.Job", STATUS, ["QueueReason"]]),
    ("aa{sv}s", [[STATUS, {}, STATUS], ""]),
    ("ybnqiuxtdsog", [255, False, -2, 3, -4, 5, -6, 7, 0.5, "s", "/", "a{sv}"]),
    ("yayyaty", [1, b"abc", 2, [], 3]),
    ("(y(xs))", [[1, [2, "three"]]]),
    ("hah", [0, [1]]),
]


@pytest.mark.parametrize(("signature", "body"), BODIES, ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("fds", [[], [5, 6]])
def test_a_message_is_what_the_library_would_send(signature: str, body: list[object], fds: list[int]) -> None:
    call = Message("org.example", "/a/b", "a.b", "Do", signature=signature, body=body, serial=9, unix_fds=fds)
    call.sender = ":1.5"
    told = Message.new_signal("/a", "a.b", "Told", signature, body)
    told.destination, told.serial = ":1.77", 3
    returned = Message.new_method_return(call, signature, body, fds)
    failed = Message.new_error(call, ErrorType.FAILED, "why")
    quiet = Message("a.b", "/", "a.b", "Do", flags=MessageFlag.NO_REPLY_EXPECTED, signature=signature, body=body)
    for message in (call, told, returned, failed, quiet):
        for negotiated in (True, False):
            assert pack(message, negotiated) == bytes(message._marshall(negotiated))


@pytest.mark.parametrize(
    ("signature", "body"), [("s", []), ("s", ["a", "b"]), ("s", [5]), ("u", [-1]), ("(ss)", [["a"]]), ("as", [5])]
)
def test_what_does_not_fit_its_signature_is_not_sent(signature: str, body: list[object]) -> None:
    with pytest.raises(Exception):  # noqa: B017
        pack(Message("a.b", "/", "a.b", "Do", signature=signature, body=body), fds=False)
