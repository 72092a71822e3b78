"""The arrows between modules: words know nothing of the engine, the engine nothing of doors, doors only words."""

import ast
import sys
from pathlib import Path

import pytest

import jobsvc

ROOT = Path(jobsvc.__file__).parent
WORDS = frozenset(
    "__init__ errors quantity moment kinds spec model config events control wire bus inflow message chunks "
    "formats".split()
)
DOORS = frozenset("client client_bus client_logs render cli".split())
STDLIB_ONLY = frozenset("launcher supervisor".split())
DBUS_NEXT = frozenset("bus message wire service methods polkit systemd daemon interface".split())


def imports(path: Path) -> set[str]:
    """Every module a file imports, also inside functions; `from jobsvc import x` is jobsvc.x."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "jobsvc":
            found |= {f"jobsvc.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return found


def module(path: Path) -> str:
    """The name under the package: `cli` for all of its files."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


FILES = sorted(ROOT.rglob("*.py"))
NAMES = {module(path) for path in FILES}
OURS = {module(path): set[str]() for path in FILES}
OTHERS = {module(path): set[str]() for path in FILES}
for _path in FILES:
    for _name in imports(_path):
        head, _, tail = _name.partition(".")
        if head == "jobsvc":
            OURS[module(_path)].add(tail.partition(".")[0] or "__init__")
        else:
            OTHERS[module(_path)].add(head)
OURS = {name: {target if target in NAMES else "__init__" for target in found} for name, found in OURS.items()}


def reach(name: str) -> set[str]:
    """Everything a module imports of ours, directly or not."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        for target in OURS[waiting.pop()] - seen:
            seen.add(target)
            waiting.append(target)
    return seen


@pytest.mark.parametrize("name", sorted(WORDS))
def test_words_import_words(name: str) -> None:
    assert OURS[name] <= WORDS
    allowed = set(sys.stdlib_module_names) | ({"dbus_next"} if name in DBUS_NEXT else set())
    assert OTHERS[name] <= allowed


@pytest.mark.parametrize("name", sorted(DOORS))
def test_doors_import_words_and_doors(name: str) -> None:
    assert OURS[name] <= WORDS | DOORS
    assert not OTHERS[name] & {"asyncio", "dbus_next"}


@pytest.mark.parametrize("name", sorted(NAMES - DOORS))
def test_the_engine_imports_no_door(name: str) -> None:
    assert not OURS[name] & DOORS


@pytest.mark.parametrize("name", sorted(STDLIB_ONLY))
def test_what_jobs_descend_from_needs_the_standard_library_only(name: str) -> None:
    for reached in {name} | reach(name):
        assert OTHERS[reached] <= set(sys.stdlib_module_names), reached


@pytest.mark.parametrize("name", sorted(STDLIB_ONLY))
def test_what_jobs_descend_from_imports_everything_at_its_start(name: str) -> None:
    """An upgrade replaces files under it: nothing may be imported later."""
    for reached in {name} | reach(name):
        tree = ast.parse((ROOT / f"{reached}.py").read_text())
        functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
        late = [n for function in functions for n in ast.walk(function) if isinstance(n, ast.Import | ast.ImportFrom)]
        assert not late, f"{reached} imports in line {late[0].lineno}"


def test_dbus_next_stays_where_it_is() -> None:
    users = {name for name, found in OTHERS.items() if "dbus_next" in found}
    assert users <= DBUS_NEXT
