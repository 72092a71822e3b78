"""A PAM account check and session around a job, as cron does, by ctypes on libpam.

The session is opened by the supervisor while the main process waits at its barrier, so what
modules change in the process that calls them (limits, umask, niceness, login uid, groups) is read
off here, given to the main process, and put back.
"""

from __future__ import annotations

import ctypes
import os

from jobsvc import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

SERVICE: Final = b"jobsvc"
SUCCESS: Final = 0
BUFFER_ERROR: Final = 5
CONVERSATION_ERROR: Final = 19
TTY: Final = 3
SILENT: Final = 0x8000
ESTABLISH: Final = 0x0002
DELETE: Final = 0x0004
PROMPTS: Final = (1, 2)  # echo off, echo on

# When everything else is done: a module that hangs then keeps nothing but our process.
PATIENCE: Final = 60
LOGINUID: Final = "/proc/self/loginuid"

_pam: Any = None
_said: list[str] = []


class PamError(Exception):
    """PAM said no; the text says which step and why."""


class _Message(ctypes.Structure):
    _fields_ = (("style", ctypes.c_int), ("text", ctypes.c_char_p))


_TALK = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_int,
    ctypes.POINTER(ctypes.POINTER(_Message)),
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.c_void_p,
)


class _Conversation(ctypes.Structure):
    _fields_ = (("talk", _TALK), ("data", ctypes.c_void_p))


_calloc = ctypes.CDLL(None).calloc
_calloc.restype = ctypes.c_void_p
_calloc.argtypes = (ctypes.c_size_t, ctypes.c_size_t)
_free = ctypes.CDLL(None).free
_free.argtypes = (ctypes.c_void_p,)


def _talk(count: int, messages: Any, responses: Any, _data: Any) -> int:
    """Keep what modules have to say; nobody is there to answer a question."""
    for index in range(count):
        message = messages[index].contents
        if message.style in PROMPTS:
            return CONVERSATION_ERROR
        _said.append((message.text or b"").decode("utf-8", "replace").strip())
    # One empty response (a pointer and an int) per message; libpam frees it.
    memory = _calloc(count, 16)
    if not memory:
        return BUFFER_ERROR
    responses[0] = memory
    return SUCCESS


_conversation = _Conversation(_TALK(_talk), None)


def load() -> None:
    """Map libpam once, in the launcher, so that supervisors share it."""
    global _pam
    _pam = ctypes.CDLL("libpam.so.0")
    _pam.pam_getenvlist.restype = ctypes.c_void_p
    _pam.pam_strerror.restype = ctypes.c_char_p


class Session:
    """One user's PAM handle: account checked, perhaps a session opened."""

    def __init__(self, user: str) -> None:
        if _pam is None:
            load()
        self.handle = ctypes.c_void_p()
        self.opened = False
        _said.clear()
        code = _pam.pam_start(SERVICE, user.encode(), ctypes.byref(_conversation), ctypes.byref(self.handle))
        if code != SUCCESS:
            raise PamError(f"PAM cannot be started for {user} (error {code})")
        self.check(_pam.pam_set_item(self.handle, TTY, SERVICE), "start")

    def check(self, code: int, what: str) -> None:
        """Turn an error into words, those of the modules first."""
        if code == SUCCESS:
            return
        error = _pam.pam_strerror(self.handle, code).decode("utf-8", "replace")
        said = "; ".join(filter(None, _said))
        raise PamError(f"PAM {what}: {error}" + (f" ({said})" if said else ""))

    def account(self) -> None:
        """Whether the account may be used now: not locked, not expired, no nologin."""
        self.check(_pam.pam_acct_mgmt(self.handle, 0), "account")

    def open(self) -> None:
        """Credentials and session."""
        # Not every stack has credentials to give; systemd goes on without as well.
        _pam.pam_setcred(self.handle, ESTABLISH | SILENT)
        self.opened = True
        self.check(_pam.pam_open_session(self.handle, SILENT), "session")

    def environment(self) -> list[str]:
        """NAME=value, as pam_env and others left them."""
        found: list[str] = []
        table = _pam.pam_getenvlist(self.handle)
        if not table:
            return found
        entries = ctypes.cast(table, ctypes.POINTER(ctypes.c_void_p))
        index = 0
        while entry := entries[index]:
            found.append(os.fsdecode(ctypes.string_at(entry)))
            _free(entry)
            index += 1
        _free(table)
        return found

    def close(self) -> None:
        """Close what was opened; errors have no one to go to."""
        linux.set_alarm(PATIENCE, None)
        if self.opened:
            _pam.pam_close_session(self.handle, SILENT)
            _pam.pam_setcred(self.handle, DELETE | SILENT)
            self.opened = False
        _pam.pam_end(self.handle, SUCCESS)
        linux.set_alarm(0, None)


def begin(user: str, groups: list[int], session: bool) -> tuple[Session, dict[str, Any]]:
    """Check the account, open a session if wanted, and say what the job gets from it.

    The second value has environment, groups, and limits, umask, nice, loginuid where they changed.
    """
    handle = Session(user)
    try:
        handle.account()
        gifts: dict[str, Any] = {}
        if session:
            gifts = _opened(handle, groups)
    except BaseException:
        handle.close()
        raise
    return handle, gifts


def _opened(handle: Session, groups: list[int]) -> dict[str, Any]:
    """Open the session as the process the job starts from, read off its changes, put them back."""
    own_limits = linux.limits()
    own_umask = os.umask(0o022)
    own_loginuid = _loginuid()
    linux.set_limits(linux.limits_given, own_limits)
    os.setgroups(groups)  # pam_group adds to these
    try:
        handle.open()
        limits, nice = linux.limits(), os.getpriority(os.PRIO_PROCESS, 0)
        gifts: dict[str, Any] = {
            "environment": handle.environment(),
            "groups": os.getgroups(),
            "limits": {k: v for k, v in limits.items() if v != linux.limits_given.get(k)},
            "umask": os.umask(own_umask),
        }
        if nice != 0:
            gifts["nice"] = nice
        if (loginuid := _loginuid()) != own_loginuid:
            gifts["loginuid"] = loginuid
        return gifts
    finally:
        os.umask(own_umask)
        os.setgroups([])
        os.setpriority(os.PRIO_PROCESS, 0, 0)
        linux.set_limits(own_limits, linux.limits())
        if own_loginuid is not None and _loginuid() != own_loginuid:
            set_loginuid(own_loginuid)


def _loginuid() -> str | None:
    try:
        return linux.read_file(LOGINUID).decode().strip()
    except OSError:
        return None


def set_loginuid(uid: str) -> None:
    """The audit login uid of this process, as pam_loginuid(8) sets it."""
    try:
        linux.write_file(LOGINUID, uid.encode())
    except OSError:
        pass  # immutable once set, where audit is configured so
