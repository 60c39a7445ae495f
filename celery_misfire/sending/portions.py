"""Which entries share a script: a limited size, and a smaller one when a script fails again and again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping

#: The most messages that go together: in a script, a hundred block Redis for about 3 ms.
MOST_MESSAGES = 100
#: The most characters of messages that go together, but for a single message that is longer.
MOST_CHARACTERS = 1_000_000
#: An entry is at fault when its script has failed so often: answers get lost by chance, too.
TRIES_ALONE = 3
#: After so many scripts without a failure, one that failed is forgotten: its entries may be gone.
FORGOTTEN_AFTER = 100

#: A run: its entry, and when it was scheduled.
Run = tuple[str, int]


class Portions:
    """Cuts entries into portions, one for each script.

    Redis may answer everything but one script: the memory that it has left may be too short for one message,
    or a proxy may close the connection at it. A script that fails a second time is halved, until the entry at
    fault stands alone.
    """

    def __init__(self) -> None:
        self._most = MOST_MESSAGES
        #: The runs of the script that has failed, as far as their messages have not gone since.
        self._suspects: set[Run] = set()
        #: How often the script of a single entry has failed again, by entry.
        self._failures = Counter[str]()
        #: Scripts since the last failure.
        self._successes = 0

    def cut(self, names: Iterable[str], lengths: Mapping[str, Collection[int]]) -> Iterator[list[str]]:
        """Yield the entries of each script.

        :param lengths: the lengths of the messages of each entry that has some.
        """
        portion, count, length = list[str](), 0, 0
        for name in names:
            messages = lengths.get(name, ())
            more, longer = len(messages), sum(messages)
            if portion and (count + more > self._most or length + longer > MOST_CHARACTERS):
                yield portion
                portion, count, length = [], 0, 0
            portion.append(name)
            count, length = count + more, length + longer
        if portion:
            yield portion

    def failed(self, runs: Collection[Run]) -> str | None:
        """Note that a script with the messages of these runs has failed, while Redis answers.

        :returns: the entry at fault, once it is known.
        """
        again = not self._suspects.isdisjoint(runs)
        names = {name for name, _ in runs}
        self._successes = 0
        if len(names) > 1:
            self._suspects = set(runs)
        else:
            # Its runs may go by turns, some that are due and some that are late.
            self._suspects |= set(runs)
            name = names.pop()
            self._failures[name] += again
            if self._failures[name] >= TRIES_ALONE:
                self.succeeded(run for run in list(self._suspects) if run[0] == name)
                return name
        if again:
            self._most = max(1, min(self._most, len(runs)) // 2)
        return None

    def succeeded(self, runs: Iterable[Run]) -> None:
        """Note that the messages of these runs have gone, or go other ways."""
        for run in runs if self._suspects else ():
            self._suspects.discard(run)
            self._failures.pop(run[0], None)
        self._successes += 1
        if not self._suspects or self._successes >= FORGOTTEN_AFTER:
            self._suspects.clear()
            self._failures.clear()
            self._most = MOST_MESSAGES
