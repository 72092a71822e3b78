"""A desktop notice of a job's end, by the Desktop Notifications Specification over the user's own bus."""

from __future__ import annotations

import os

from jeepney.wrappers import DBusAddress

from jobsvc.cli.attach import signal_name
from jobsvc.client import Status
from jobsvc.client_bus import BusError, Connection, connect
from jobsvc.errors import ServiceUnavailable
from jobsvc.render import escape

DESKTOP = DBusAddress(
    "/org/freedesktop/Notifications", "org.freedesktop.Notifications", "org.freedesktop.Notifications"
)
NORMAL, CRITICAL = 1, 2
SECONDS = 5.0


def notice(status: Status) -> bool:
    """Show it; False if there is no desktop to show it."""
    address = os.environ.get("DBUS_SESSION_BUS_ADDRESS")
    if not address:
        return False
    well = status["State"] == "completed"
    body: tuple[object, ...] = (
        "jobctl", 0, "dialog-information" if well else "dialog-error",
        f"{escape(str(status.get('Name', 'job')))} {status['State']}", _story(status), [],
        {"urgency": ("y", NORMAL if well else CRITICAL)}, -1,
    )  # fmt: skip
    try:
        bus = Connection(connect(address))
        try:
            bus.call(DESKTOP, "Notify", "susssasa{sv}i", body, timeout=SECONDS)
        finally:
            bus.close()
    except (ServiceUnavailable, BusError, TimeoutError):
        return False
    return True


def _story(status: Status) -> str:
    """How it ended; markup means nothing in it."""
    how = str(status.get("Result", "unknown"))
    if status.get("Signal") is not None:
        how += f", {signal_name(status['Signal'])}"
    elif status.get("ExitCode"):
        how += f", status {status['ExitCode']}"
    return f"Job {status['Id']}: {escape(how)}".replace("&", "&amp;").replace("<", "&lt;")
