"""Hundreds of short lives of beats, each with other troubles: whatever happens, the checker finds nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from celery_misfire.leadership.lease import Lease
from celery_misfire.leadership.ledger import Commit as LedgerCommit
from celery_misfire.leadership.ledger import Ledger
from celery_misfire.sending.transactional import Transactional
from celery_misfire.store import registers
from celery_misfire.store.memory import MemoryStore
from celery_misfire.store.memory_namespace import one_call
from celery_misfire.store.port import Change, CommitResult
from tests.simulation.history import Problem, check
from tests.simulation.world import Plan, World

#: How many seeds each kind of trouble gets; in the long run ten times as many.
SEEDS = int(os.environ.get("MISFIRE_TEST_SEEDS") or 20)

PLANS = {
    "crashes": Plan(crash=0.02),
    "lost answers": Plan(lost=0.05, late=0.03, worker=True),
    "frozen beats": Plan(freeze=0.03, late=0.03, beats=3),
    "a store that goes back": Plan(back=0.01, worker=True),
    "a store that loses all": Plan(flush=0.004),
    "a queue that refuses": Plan(queue_refuses=0.05, worker=True),
    "messages that leave early": Plan(early=True, worker=True, crash=0.01, lost=0.03),
    "a message that no script gets through": Plan(poisoned=True, worker=True, lost=0.02),
    "two places": Plan(apart=True, worker=True),
    "workers that give up": Plan(apart=True, worker=True, gives_up=True, slow=0.3, cut=0.01, lost=0.05),
    "workers that are faster than a commit": Plan(
        apart=True, worker=True, gives_up=True, slow=0.3, between=0.2, cut=0.03
    ),
    "workers that are faster than a script": Plan(
        worker=True, gives_up=True, queue_refuses=0.2, slow=0.3, between=0.2, lost=0.05, cut=0.03
    ),
}


def run(seed: int, plan: Plan) -> list[Problem]:
    """Return what the checker finds."""
    in_one = not (plan.apart or plan.early or plan.poisoned or plan.queue_refuses)
    return check(World(seed, plan).run(), queued_once=in_one, drained=plan.gives_up).problems


MANY = pytest.param(range(SEEDS, 10 * SEEDS), marks=[pytest.mark.long, pytest.mark.timeout(600)], id="many")


@pytest.mark.parametrize("seeds", [pytest.param(range(SEEDS), id="some"), MANY])
@pytest.mark.parametrize("trouble", PLANS)
def test_each_occurrence_ends_once(trouble: str, seeds: range) -> None:
    for seed in seeds:
        assert run(seed, PLANS[trouble]) == [], f"seed {seed}"


Changes = Sequence[Change]
Commit = Callable[..., CommitResult]


# -- rules that are taken away -----------------------------------------------------------------------------


def memory_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that went back together with its queue is brought up to date from memory."""
    monkeypatch.setattr(Ledger, "_settle", Ledger.restore)


def no_new_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script without an answer is planned again at once. Nothing holds it back, nor do the records."""

    def plan_again(ledger: Ledger) -> bool:
        was_there = ledger._unanswered is not None
        ledger._unanswered = None
        return was_there

    def blind(store: MemoryStore, commit: Commit, token: str, changes: Changes, log: Any, pushes: Any) -> Any:
        records = store.database.contents.records
        now = {change.entry: records.get(change.entry, "") for change in changes}
        changes = [c if now[c.entry] == c.new else replace(c, old=now[c.entry]) for c in changes]
        return commit(store, token, changes, log, pushes)

    monkeypatch.setattr(Lease, "distrust", lambda _: None)
    monkeypatch.setattr(Ledger, "repeat_unanswered", plan_again)
    replace_commit(monkeypatch, blind)


def pushes_before_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The script pushes before it has looked at lease and records."""

    def hasty(store: MemoryStore, commit: Commit, token: str, changes: Changes, log: Any, pushes: Any) -> Any:
        for push in pushes:
            store.database.push(push)
        return commit(store, token, changes, log)

    replace_commit(monkeypatch, hasty)


def records_before_pushes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The script writes records, and then pushes what may be refused."""

    def bold(store: MemoryStore, commit: Commit, token: str, changes: Changes, log: Any, pushes: Any) -> Any:
        result = commit(store, token, changes, log)
        for push in () if result.conflicts else pushes:
            store.database.push(push)
        return result

    replace_commit(monkeypatch, bold)


def replace_commit(monkeypatch: pytest.MonkeyPatch, other: Callable[..., Any]) -> None:
    right = MemoryStore.commit.__wrapped__

    def commit(
        store: MemoryStore, token: str, changes: Changes, log: Any = (), pushes: Any = (), *_: Any
    ) -> Any:
        return other(store, right, token, changes, log, pushes)

    monkeypatch.setattr(MemoryStore, "commit", one_call(commit))


def early_in_one_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """What leaves while its message is built is no case of its own."""
    monkeypatch.setattr(Transactional, "_goes_in_two_steps", lambda *_: False)


def looks_at_no_register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beat writes that a run was sent, and does not look whether a worker has left it to beat."""
    monkeypatch.setattr(Ledger, "_acks", lambda *_: {})


def looks_before_it_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beat looks at the registers first, and then writes that the runs were sent."""

    def look(ledger: Ledger, commit: LedgerCommit) -> dict[str, int]:
        acks = right(ledger, commit)
        return {id_: at for id_, at in acks.items() if registers.is_left_to_beat(ledger.store.register(id_))}

    right = Ledger._acks
    monkeypatch.setattr(Ledger, "_acks", look)


TAKEN_AWAY = [
    (memory_overrides, "a store that goes back"),
    (no_new_token, "lost answers"),
    (pushes_before_checks, "frozen beats"),
    (records_before_pushes, "a queue that refuses"),
    (early_in_one_script, "messages that leave early"),
    (looks_at_no_register, "workers that give up"),
    (looks_before_it_commits, "workers that are faster than a commit"),
    (looks_at_no_register, "workers that are faster than a script"),
]


@pytest.mark.parametrize(("rule", "trouble"), TAKEN_AWAY)
def test_a_rule_that_is_taken_away_is_missed(
    rule: Callable[[pytest.MonkeyPatch], None], trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule(monkeypatch)
    assert any(run(seed, PLANS[trouble]) for seed in range(2 * SEEDS))
