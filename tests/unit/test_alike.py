"""Equal specs are kept once, and nothing that differs is taken for another."""

from hypothesis import given
from hypothesis import strategies as st

from jobsvc.alike import MOST, Alike
from jobsvc.model import Job, Queued, Run, User

ALICE = User(1000, "alice")
SPECS = st.dictionaries(
    st.sampled_from(["Command", "Hold", "ArrayIndex", "Dependencies"]),
    st.booleans() | st.integers(0, 1) | st.lists(st.sampled_from(["a", "b"]), max_size=2) | st.just([("a", "any")]),
)


def job(spec: dict[str, object], request: str = ":1.2:3") -> Job:
    return Job("0" * 16, ALICE, ALICE, 1000, spec, 1, request, Run(1, Queued("")))


@given(st.lists(SPECS, max_size=20))
def test_a_job_is_what_it_was(specs: list[dict[str, object]]) -> None:
    alike = Alike()
    for spec in specs:
        kept = alike.same(job(dict(spec)))
        assert kept == job(spec)
        assert [type(value) for value in kept.spec.values()] == [type(value) for value in spec.values()]


def test_equal_ones_are_one_and_equal_parts_too() -> None:
    alike = Alike()
    first, second = (alike.same(job({"Command": ["make", "all"], "Nice": 5})) for _ in range(2))
    assert first.spec is second.spec
    third = alike.same(job({"Command": ["make", "all"], "Nice": 6}))
    assert third.spec["Command"] is first.spec["Command"]


def test_it_does_not_grow() -> None:
    alike = Alike()
    for number in range(1000):
        alike.same(job({"Command": [str(number)]}, f":1.2:{number}"))
    assert max(len(alike._specs), len(alike._values), len(alike._requests)) <= MOST


def test_what_is_long_goes_with_its_job() -> None:
    alike = Alike()
    kept = alike.same(job({"Command": ["x" * 10_000]}))
    assert (kept.spec["Command"], alike._specs, alike._values) == (["x" * 10_000], {}, {})
