"""How the messages of a batch leave for RabbitMQ."""

from __future__ import annotations

import socket
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from celery_misfire.sending import confirms as module
from celery_misfire.sending.confirms import Confirms, Receipt

CORK = 3


class Channel:
    """A channel of py-amqp, as far as its answers are asked for; it takes down what happens, in order."""

    def __init__(self) -> None:
        self.happened: list[str] = []
        self.events: dict[str, set[Callable[..., None]]] = defaultdict(set)
        sock = SimpleNamespace(setsockopt=self._set_option)
        self.connection = SimpleNamespace(sock=sock, drain_events=self._drain)

    def confirm_select(self) -> None:
        """Answers will come."""

    def basic_publish(self, name: str) -> None:
        self.happened.append(name)

    def _set_option(self, level: int, option: int, value: Any) -> None:
        assert (level, option) == (socket.IPPROTO_TCP, CORK)
        self.happened.append("hold back" if value else "let go")

    def _drain(self) -> None:
        published = len([name for name in self.happened if name.startswith("message")])
        for take in self.events["basic_ack"]:
            take(published, True)
        self.happened.append("answer")


def publish(channel: Channel, confirms: Confirms, *names: str) -> list[Receipt]:
    """Publish a batch and await the answers."""
    receipts = [Receipt(name) for name in names]
    for name, confirms.coming in zip(names, receipts, strict=True):
        channel.basic_publish(name)
    confirms.wait()
    return receipts


def test_a_batch_is_held_back_until_its_answers_are_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CORK", CORK)
    channel = Channel()
    confirms = Confirms(channel)
    receipts = publish(channel, confirms, "message 1", "message 2", "message 3")
    assert all(receipt.was_taken for receipt in receipts)
    publish(channel, confirms, "message 4")
    # Nothing is awaited, and so nothing is let go.
    confirms.wait()
    batch = ["hold back", "message 1", "message 2", "message 3", "let go", "answer"]
    assert channel.happened == [*batch, "hold back", "message 4", "let go", "answer"]


def test_a_system_that_holds_nothing_back_sends_each_message_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CORK", None)
    channel = Channel()
    receipts = publish(channel, Confirms(channel), "message 1", "message 2")
    assert all(receipt.was_taken for receipt in receipts)
    assert channel.happened == ["message 1", "message 2", "answer"]
