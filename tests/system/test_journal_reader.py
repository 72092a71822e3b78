"""The journal's contract, kept by the real one of each suite; the unit tests keep it on paper."""

import json
from pathlib import Path

from journal_contract import CHECKS
from machine.nspawn import Machine

TESTS = Path(__file__).parent.parent


def test_the_real_journal_keeps_the_contract(machine: Machine) -> None:
    place = "/var/tmp/journal-contract"
    machine.write(f"{place}/journal_contract.py", (TESTS / "journal_contract.py").read_text())
    machine.write(f"{place}/native_desk.py", (TESTS / "system" / "native_desk.py").read_text())
    done = machine.run("python3", "-B", f"{place}/native_desk.py", timeout=120)
    assert json.loads(done.stdout) == [check.__name__ for check in CHECKS]
