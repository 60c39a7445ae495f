"""Which entries share a script, and what becomes of a script that fails again and again."""

from __future__ import annotations

from celery_misfire.sending.portions import FORGOTTEN_AFTER, MOST_CHARACTERS, MOST_MESSAGES, Portions

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
            if "042" in names:
                failures.append(len(names))
                found = portions.failed(names)
                break
            portions.succeeded(names)
            for name in names:
                del left[name]
    assert found == "042"
    assert failures[:3] == [100, 100, 50]
    assert failures[-1] == 1
    assert len(failures) < 12
    # What is left goes in large scripts again.
    assert len(next(portions.cut(NAMES, {n: [1] for n in NAMES}))) == MOST_MESSAGES


def test_a_script_that_fails_once_is_repeated_as_it_is() -> None:
    portions, lengths = Portions(), {n: [1] for n in NAMES}
    first = next(portions.cut(NAMES, lengths))
    assert portions.failed(first) is None
    assert next(portions.cut(NAMES, lengths)) == first
    assert portions.failed(NAMES[100:200]) is None
    assert portions.failed(["200"]) is None
    assert len(next(portions.cut(NAMES, lengths))) == MOST_MESSAGES


def test_suspects_that_never_come_again_do_not_keep_scripts_small() -> None:
    portions, lengths = Portions(), {n: [1] for n in NAMES}
    for _ in range(3):
        portions.failed(next(portions.cut(NAMES, lengths)))
    assert len(next(portions.cut(NAMES, lengths))) == MOST_MESSAGES // 4
    for _ in range(FORGOTTEN_AFTER):
        portions.succeeded(["another"])
    assert len(next(portions.cut(NAMES, lengths))) == MOST_MESSAGES
