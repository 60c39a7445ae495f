"""Frozen dataclasses with other values."""

from dataclasses import FrozenInstanceError, replace

import pytest

from celery_misfire.entry_record import EntryRecord
from celery_misfire.frozen import replaced
from celery_misfire.misfire import TriggerState

RECORD = EntryRecord("a", "shop.a", 1, "", TriggerState(next_fire_time=5, start_time=1))


def test_a_value_is_replaced_as_by_the_standard_library() -> None:
    other = replaced(RECORD, generation=2, removed_at=3)
    assert other == replace(RECORD, generation=2, removed_at=3)
    assert hash(other) == hash(replace(RECORD, generation=2, removed_at=3))
    assert RECORD.generation == 1


def test_a_replaced_value_is_frozen_as_well() -> None:
    with pytest.raises(FrozenInstanceError):
        replaced(RECORD, generation=2).name = "b"  # type: ignore[misc]
