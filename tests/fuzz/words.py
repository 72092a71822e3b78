"""What bodies are made of: values of any D-Bus type, and the names and values that mean something here."""

from __future__ import annotations

import functools
import inspect
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from hostile import things
from jobsvc import interface, spec

ROOT = interface.ROOT
MISSING = "0123456789abcdef"
# What may be given to whom: every spec key, every option and filter of any method.
KEYS: dict[str, str] = {
    **{name: kind for table in (interface.FILTER, interface.PAGE, interface.READ_LOGS) for name, kind in table.items()},
    **{name: key.signature for name, key in spec.KEYS.items()},
    "DryRun": "b",
}
SIGNATURES = (
    *("y", "b", "n", "q", "i", "u", "x", "t", "d", "s", "o", "g", "as", "ay", "ai", "at", "a{ss}", "a{sv}", "a(st)"),
    *("a(ss)", "(sv)", "aas", "aaas", "a{s(ii)}", "a{ua{sv}}", "aa{sv}", "((((s))))", "a(a(a(s)))", "av"),
    *("h", "ah", "v"),
)
STRAY = [
    ("org.freedesktop.DBus.Peer", "Ping"),
    ("org.freedesktop.DBus.ObjectManager", "GetManagedObjects"),
    ("org.freedesktop.systemd1.Manager", "JobRemoved"),
    ("org.freedesktop.login1.Manager", "PrepareForShutdown"),
    ("org.freedesktop.DBus", "NameOwnerChanged"),
    ("no.such.Interface", "Nothing"),
]
COMMANDS = (
    ["true"],
    ["sh", "-c", "echo hi; exit 3"],
    ["sleep", "0.05"],
    ["head", "-c", "99"],
    ["/no/such"],
    ["true", "x" * 1000],
    [""],
    [],
)
TEXTS = (
    *("", "x", "root", "bob", "0", "#0", "-1", "4294967295", MISSING, "@", "@0", "*", "[", "a" * 128, "a" * 129),
    *("../../etc/passwd", "/etc/shadow", "/", "//", "/dev/zero", "/home/bob", "append:/home/bob/fuzz", "truncate:/x"),
    *("stdout", "stderr", "raw", "json", "export", "running", "queued", "default", "main", "all", "success", "any"),
    *(
        "\n",
        "\x1b[2J",
        "\u202eevil",
        "\ud7ff",
        "\U0010ffff",
        "%s%n",
        "'; DROP TABLE jobs; --",
        "$(id)",
        "A=b",
        "=",
        "A",
    ),
)
NUMBERS = (
    0,
    1,
    2,
    9,
    15,
    31,
    32,
    63,
    64,
    65,
    100,
    127,
    128,
    255,
    500,
    501,
    10_000,
    65_535,
    2**31 - 1,
    2**31,
    2**32 - 1,
)
LARGE = (*NUMBERS, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
RANGES = {"y": (0, 8, 0), "n": (-1, 15, 1), "q": (0, 16, 0), "i": (-1, 31, 1), "u": (0, 32, 0)}
RANGES |= {"x": (-1, 63, 1), "t": (0, 64, 0)}


@dataclass(frozen=True)
class Entry:
    """One method as the introspection tells it."""

    of: str
    name: str
    takes: tuple[str, ...]


def methods(xml: str) -> list[Entry]:
    return [
        Entry(
            str(of.get("name")),
            str(method.get("name")),
            tuple(str(arg.get("type")) for arg in method.findall("arg") if arg.get("direction") == "in"),
        )
        for of in ET.fromstring(xml).findall("interface")
        for method in of.findall("method")
    ]


@functools.cache
def numbers(kind: str) -> st.SearchStrategy[int]:
    sign, bits, negative = RANGES[kind]
    low, high = sign * 2**bits * negative, 2**bits - 1
    return st.one_of(
        st.sampled_from([number for number in LARGE if number <= high]),
        st.sampled_from([low, high]),
        st.integers(low, high),
    )


# Named otherwise before Hypothesis 6.90.
_NEW = "exclude_categories" in inspect.signature(st.characters).parameters
_CHARACTERS: dict[str, Any] = {
    "exclude_categories" if _NEW else "blacklist_categories": ["Cs"],
    "exclude_characters" if _NEW else "blacklist_characters": "\0",
}
texts = st.one_of(
    st.sampled_from(TEXTS),
    st.text(st.characters(**_CHARACTERS), max_size=40),
    st.sampled_from([1_000, 70_000, 140_000]).map(lambda size: "x" * size),
)
paths = st.sampled_from(
    [ROOT, f"{ROOT}/job", f"{ROOT}/job/{MISSING}", f"{ROOT}/job/x", "/", "/org", "/org/freedesktop/DBus", "/a" * 200]
)


@functools.cache
def descriptors() -> tuple[int, ...]:
    """One of each kind there is; no command in here reads one that would keep its job waiting."""
    return tuple(make() for make in things.THINGS.values())


@dataclass(frozen=True)
class Handed:
    """Descriptors that nobody has asked for: with a call, with one that wants no answer, with a signal."""

    how: str
    path: str
    of: str
    member: str
    fds: tuple[int, ...]


def handed(entries: list[Entry], own: int) -> st.SearchStrategy[Handed]:
    """`own` is a file of a file system of ours, which has the worst answers."""
    one = st.one_of(st.sampled_from(descriptors()), st.just(own))
    called = st.sampled_from([(entry.of, entry.name) for entry in entries] + STRAY)
    where = st.one_of(st.just(ROOT), paths)
    return st.tuples(
        st.sampled_from(["call", "call without an answer", "signal"]),
        where,
        called,
        st.lists(one, min_size=1, max_size=16).map(tuple),
    ).map(lambda four: Handed(four[0], four[1], *four[2], four[3]))


@functools.cache
def values(kind: str) -> st.SearchStrategy[Any]:
    """Any value of this type, as jeepney takes it."""
    match kind[0]:
        case "s":
            return texts
        case "o":
            return paths
        case "g":
            return st.sampled_from(["", "s", "a{sv}", "(ii)", "v"])
        case "b":
            return st.booleans()
        case "h":
            return st.sampled_from(descriptors())
        case "d":
            return st.floats()
        case "v":
            return st.sampled_from(SIGNATURES[:-1]).flatmap(variants)
        case "(":
            return st.tuples(*(values(part) for part in split(kind[1:-1])))
        case "a" if kind == "ay":
            return st.one_of(st.binary(max_size=64), st.integers(0, 100_000).map(bytes))
        case "a" if kind.startswith("a{"):
            key, value = split(kind[2:-1])
            return st.dictionaries(values(key), values(value), max_size=4)
        case "a" if kind[1] in RANGES:
            return st.lists(values(kind[1]), max_size=4) | numbers(kind[1]).map(lambda one: [one] * 10_000)
        case "a":
            return st.lists(values(kind[1:]), max_size=3)
        case number:
            return numbers(number)


def split(signature: str) -> list[str]:
    """The complete types a signature is made of."""
    parts, at = [], 0
    while at < len(signature):
        end = at
        while signature[end] == "a":
            end += 1
        if signature[end] in "({":
            depth = 0
            while True:
                depth += (signature[end] in "({") - (signature[end] in ")}")
                if not depth:
                    break
                end += 1
        parts.append(signature[at : end + 1])
        at = end + 1
    return parts


@functools.cache
def variants(kind: str) -> st.SearchStrategy[tuple[str, Any]]:
    return values(kind).map(lambda value: (kind, value))


@functools.cache
def fitting(name: str) -> st.SearchStrategy[tuple[str, Any]]:
    """A value of the right type for this key, mostly; of another one now and then."""
    kind = KEYS[name]
    right = st.sampled_from(COMMANDS).map(lambda command: ("as", command)) if name == "Command" else variants(kind)
    return st.one_of(right, right, right, st.sampled_from(SIGNATURES[:-1]).flatmap(variants))


@functools.cache
def bags(names: tuple[str, ...]) -> st.SearchStrategy[dict[str, Any]]:
    """`a{sv}` with keys that are known somewhere, and with one that is not."""
    known = st.lists(st.sampled_from(names), max_size=4, unique=True).flatmap(
        lambda chosen: st.fixed_dictionaries({name: fitting(name) for name in chosen})
    )
    return st.one_of(known, known, known, st.just({}), st.dictionaries(texts, values("v"), max_size=2))


specs = st.one_of(
    st.tuples(st.sampled_from(COMMANDS), bags(tuple(spec.KEYS))).map(lambda two: {"Command": ("as", two[0])} | two[1]),
    bags(tuple(spec.KEYS)),
)


def bodies(entry: Entry, jobs: list[str]) -> st.SearchStrategy[tuple[str, tuple[Any, ...]]]:
    """A signature and a body for this method: as it wants them, mostly."""
    ids = st.one_of(st.sampled_from([*jobs, MISSING]), texts)
    parts: list[st.SearchStrategy[Any]] = []
    for number, kind in enumerate(entry.takes):
        if kind == "s" and not number:
            parts.append(ids)
        elif kind == "as":
            parts.append(st.lists(ids, max_size=3))
        elif kind == "aa{sv}":
            parts.append(st.one_of(st.lists(specs, max_size=3), specs.map(lambda one: [one] * 1001)))
        elif kind == "a{sv}":
            parts.append(specs if number == 0 and entry.name == "Start" else bags(tuple(KEYS)))
        else:
            parts.append(values(kind))
    right = st.tuples(st.just("".join(entry.takes)), st.tuples(*parts))
    wrong = st.lists(st.sampled_from(SIGNATURES), max_size=3).flatmap(
        lambda kinds: st.tuples(st.just("".join(kinds)), st.tuples(*(values(kind) for kind in kinds)))
    )
    return st.one_of(right, right, right, right, wrong)
