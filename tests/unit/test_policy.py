"""What is installed for polkit, and how polkit is asked."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

from jobsvc.polkit import Action

TREE = Path(__file__).parents[2]
POLICY = TREE / "systemd" / "polkit" / "org.jobsvc1.policy"
# What may stand behind one yes: of these a kept permission does not say what will be executed.
NEVER_KEPT = {"org.jobsvc1.start", "org.jobsvc1.start-as-user", "org.jobsvc1.exceed-limits"}


def defaults() -> dict[str, set[str]]:
    actions = ET.parse(POLICY).getroot().findall("action")
    return {str(one.get("id")): {str(word.text).strip() for word in one.findall("defaults/*")} for one in actions}


def test_every_action_has_defaults_and_every_default_an_action() -> None:
    assert set(defaults()) == set(map(str, Action))
    assert all(words <= {"yes", "no", "auth_admin", "auth_admin_keep"} for words in defaults().values())
    for one in ET.parse(POLICY).getroot().findall("action/defaults"):
        assert {word.tag for word in one} == {"allow_any", "allow_inactive", "allow_active"}


def test_no_yes_to_what_is_executed_is_kept() -> None:
    told = defaults()
    assert [action for action in NEVER_KEPT if any("keep" in word for word in told[action])] == []
    unasked = {action for action, words in told.items() if words == {"yes"}}
    assert unasked == {"org.jobsvc1.start", "org.jobsvc1.manage-own"}


def test_polkit_is_asked_about_names_on_the_bus_and_never_about_processes() -> None:
    """A process number may be another process's by the time polkit looks at it."""
    for source in sorted((TREE / "jobsvc").rglob("*.py")):
        text = source.read_text()
        assert not re.search(r"unix-(process|session)", text), source
        assert text.count("CheckAuthorization,") + text.count('.CheckAuthorization"') == (source.name == "polkit.py")
    assert '"system-bus-name"' in (TREE / "jobsvc" / "polkit.py").read_text()
