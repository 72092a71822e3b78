"""Between D-Bus variants and plain Python values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dbus_next.signature import Variant

Typed = dict[str, tuple[str, Any]]


def unpack(options: Mapping[str, Variant]) -> Typed:
    """`a{sv}` → name → (signature, plain value)."""
    return {name: (variant.signature, plain(variant.value)) for name, variant in options.items()}


def plain(value: Any) -> Any:
    """A value without the variants in it."""
    match value:
        case Variant():
            return plain(value.value)
        case list():
            return [plain(item) for item in value]
        case dict():
            return {key: plain(item) for key, item in value.items()}
        case _:
            return value


def pack(values: Mapping[str, Any], signatures: Mapping[str, str]) -> dict[str, Variant]:
    """Name → plain value, as `a{sv}`; what is unknown (None) is absent. A nested map is itself `a{sv}`."""
    return {
        name: Variant("a{sv}", pack(value, signatures))
        if signatures[name] == "a{sv}"
        else Variant(signatures[name], value)
        for name, value in values.items()
        if value is not None
    }
