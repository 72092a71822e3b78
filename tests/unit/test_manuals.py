"""The manual pages name every word that the service understands or says."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from jobsvc import config, errors, events, interface, polkit, service, spec, status

MAN = Path(__file__).parents[2] / "man"


def page(name: str) -> str:
    """The text of a page, without the escapes of minus and quote."""
    return (MAN / name).read_text().replace("\\-", "-").replace("\\(aq", "'")


def section(text: str, *titles: str) -> str:
    """The text of these sections (.Sh) or subsections (.Ss)."""
    parts = re.split(r"^\.S[hs] (.*)$", text, flags=re.MULTILINE)
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    return "\n".join(found[title] for title in titles)


def defined(text: str) -> set[str]:
    """The words that lists and tables of the text define."""
    lines = re.findall(r"^\.It (.*)$|^([A-Z]\w+)\t", text, flags=re.MULTILINE)
    return {word for line in lines for part in line for word in re.findall(r"[A-Za-z][\w-]*", part)}


def missing(words: object, text: str) -> list[str]:
    assert words
    return sorted(set(words) - defined(text))  # type: ignore[call-overload]


CONF, BUS = page("jobsvc.conf.5"), page("org.jobsvc1.5")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (config.MANAGER, section(CONF, "THE [MANAGER] SECTION")),
        (config.QUEUE, section(CONF, "THE [QUEUE NAME] SECTIONS")),
        (service.METHODS, section(BUS, *re.findall(r"^\.Ss (.*)$", BUS, flags=re.MULTILINE), "METHODS")),
        (interface.SIGNALS, section(BUS, "SIGNALS")),
        (interface.PROPERTIES, section(BUS, "PROPERTIES")),
        (interface.FILTER, section(BUS, "Filter")),
        (interface.PAGE, section(BUS, "Looking")),
        (interface.LOGS, section(BUS, "Output")),
        (interface.READ_LOGS, section(BUS, "Output")),
        (interface.STATS, section(BUS, "Looking")),
        (status.SIGNATURES, section(BUS, "STATUS KEYS")),
        (
            errors.FAMILY,
            section(BUS, "ERROR NAMES").replace("org.jobsvc1.Error.", "").replace("org.freedesktop.DBus.Error.", ""),
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(sorted(value)[:2]),
)
def test_every_word_is_in_its_list(words: object, text: str) -> None:
    assert missing(words, text) == []


def test_every_spec_key_is_explained() -> None:
    text = BUS[BUS.index(".Sh SPEC KEYS") : BUS.index(".Sh STATUS KEYS")]
    limits = {name for name in spec.KEYS if name.startswith("Limit")}
    assert missing(spec.KEYS.keys() - limits, text) == []
    assert all(name in text for name in limits)


def test_every_limit_can_be_found_in_the_configuration_page() -> None:
    text = section(CONF, "DEFAULTS AND CEILINGS")
    spelled = {spec.KEYS[name].spelling or name for name in config.BOUNDS if not name.startswith("Limit")}
    assert [name for name in sorted(spelled) if f"{name}=" not in text] == []


def test_no_method_is_described_that_is_not_there() -> None:
    named = set(re.findall(r"^\.It Fn (\w+)", BUS, flags=re.MULTILINE))
    assert named - {"PropertiesChanged"} == service.METHODS.keys() | interface.SIGNALS.keys()


def test_every_event_and_action_is_in_its_table() -> None:
    known = {name: value for name, value in vars(events).items() if name.isupper()}
    assert [name for name, value in known.items() if value not in BUS] == []
    assert [action for action in polkit.Action if action not in BUS] == []


def test_every_event_is_in_the_catalog() -> None:
    catalog = (MAN.parent / "systemd/jobsvc.catalog").read_text()
    known = {name: value for name, value in vars(events).items() if name.isupper()}
    assert [name for name, value in known.items() if f"-- {value}\n" not in catalog] == []


@pytest.mark.parametrize("width", ["80", "120"])
@pytest.mark.parametrize("page", sorted(path.name for path in MAN.iterdir()))
def test_a_page_is_set_without_a_complaint(page: str, width: str) -> None:
    """Such as a table that is too wide, or begins where a page ends: lintian sets them in 120 columns."""
    command = ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", str(MAN / page)]
    environment = {"MANWIDTH": width, "LC_ALL": "C.UTF-8", "PATH": os.environ["PATH"]}
    done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    said = [line for line in done.stderr.splitlines() if "cannot adjust line" not in line]
    assert (done.returncode, said) == (0, [])
