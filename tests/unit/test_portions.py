"""Which entries share a script, and what becomes of a script that fails again and again."""

from __future__ import annotations

from celery_misfire.sending.portions import (
    FORGOTTEN_AFTER,
    MOST_CHARACTERS,
    MOST_MESSAGES,
    TRIES_ALONE,
    Portions,
)

NAMES = [f"{n:03}" for n in range(250)]


def test_a_script_has_a_limited_number_of_messages_and_of_characters() -> None:
    portions = Portions()
    assert [len(p) for p in portions.cut(NAMES, {n: [1] for n in NAMES})] == [100, 100, 50]
    lengths = {"a": [MOST_CHARACTERS // 2], "b": [MOST_CHARACTERS // 2], "c": [1], "d": [5 * MOST_CHARACTERS]}
    assert list(portions.cut("abcd", lengths)) == [["a", "b"], ["c"], ["d"]]


def test_entries_without_messages_do_not_count() -> None:
    assert list(Portions().cut(NAMES, {})) == [NAMES]


def test_a_script_that_fails_again_is_halved_until_the_entry_at_fault_stands_alone() -> None:
    portions, left, failures, found = Portions(), {name: [1] for name in NAMES}, list[int](), None
    while found is None:
        for names in list(portions.cut(list(left)[:MOST_MESSAGES], left)):
            runs = [(name, 1) for name in names]
            if "042" in names:
                failures.append(len(names))
                found = portions.failed(runs)
                break
            portions.succeeded(runs)
            for name in names:
                del left[name]
    assert found == "042"
    assert failures[:3] == [100, 100, 50]
    assert failures[-1] == 1
    assert failures.count(1) == TRIES_ALONE
    assert len(failures) < 16
    # What is left goes in large scripts again.
    assert len(next(portions.cut(NAMES, {n: [1] for n in NAMES}))) == MOST_MESSAGES


def test_a_script_that_fails_once_is_repeated_as_it_is() -> None:
    portions, lengths = Portions(), {n: [1] for n in NAMES}
    first = next(portions.cut(NAMES, lengths))
    assert portions.failed([(name, 1) for name in first]) is None
    assert next(portions.cut(NAMES, lengths)) == first
    # Whatever is sent later of the same entries is another run: this one was carried out.
    assert all(portions.failed([(name, n) for name in first]) is None for n in range(2, 20))
    assert all(portions.failed([("200", n)]) is None for n in range(20))
    assert len(next(portions.cut(NAMES, lengths))) == MOST_MESSAGES


def test_suspects_that_never_come_again_do_not_keep_scripts_small() -> None:
    portions, lengths = Portions(), {n: [1] for n in NAMES}
    for _ in range(3):
        portions.failed([(name, 1) for name in next(portions.cut(NAMES, lengths))])
    assert len(next(portions.cut(NAMES, lengths))) == MOST_MESSAGES // 4
    for _ in range(FORGOTTEN_AFTER):
        portions.succeeded([("another", 1)])
    assert len(next(portions.cut(NAMES, lengths))) == MOST_MESSAGES
