"""Mail about outages and missed runs, through Django's mail API: one that beat is down, one for each outage.

Off until the setting ``misfire_mail_to`` or a policy names an address. A worker that watches beat says that
it is down. What was missed is told together, with the news that beat is back: whoever keeps a record, or sees
that beat leads again, looks a moment later at what has not been told. By marks in the database one process
alone sends each mail.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from celery import current_app
from django.core.mail import send_mail
from django.db import close_old_connections, connections

from celery_misfire.conf.settings import Settings, read_settings
from celery_misfire.contrib.django import mail_texts as texts
from celery_misfire.contrib.django.database import is_migrated
from celery_misfire.contrib.django.models import Alarm, MisfirePolicy, MissedFire
from celery_misfire.contrib.django.moments import as_stored, now
from celery_misfire.contrib.django.planned import keys_of
from celery_misfire.contrib.django.state import open_store, records_of
from celery_misfire.contrib.django.updates import in_chunks
from celery_misfire.exceptions import MisfireConfigError, StoreUnavailable
from celery_misfire.log_lines import Log
from celery_misfire.misfire import Reason, to_millis
from celery_misfire.signals import beat_overdue, beat_recovered

say = Log(__name__, "mail")

#: The shortest time between two mails about one task to one address; the later one tells what came between.
#: Outages have a mail of their own, however soon they come.
MAIL_INTERVAL = timedelta(hours=1)
#: What was found longer ago than this is told no more.
MAIL_WITHIN = timedelta(days=1)
#: A mail waits until nothing new has come for so long, in seconds, and at most so many times.
QUIET, MOST_WAITS = 3.0, 10
#: How long a mail that cannot be sent waits before each further try, in seconds; then it is given up.
RETRIES = (30, 60, 120, 300, 600, 1200, 2400, 3600)
#: A process that ends waits so long for the mail server, in seconds.
EXIT_TIMEOUT = 10.0
#: The name of each thread that sends mail.
THREAD = "misfire-mail"
#: Most records that one look tells of; the next look tells of the others.
MOST_RECORDS = 10_000

OUTAGES = frozenset(
    {Reason.SCHEDULER_DOWN, Reason.FAILOVER, Reason.STORE_UNAVAILABLE, Reason.BROKER_UNAVAILABLE}
)


def install() -> None:
    """Have mail sent when the watch of this process sees that beat is down, and that it is back."""
    beat_overdue.connect(_on_overdue, dispatch_uid=_on_overdue.__qualname__)
    beat_recovered.connect(_on_recovered, dispatch_uid=_on_recovered.__qualname__)


def _on_overdue(entries: Sequence[str], since: datetime, **_: Any) -> None:
    _in_thread(lambda: tell_overdue(entries, to_millis(since), now()))


def _on_recovered(**_: Any) -> None:
    def recovered() -> None:
        tell_recovered(now())
        mail_soon()

    _in_thread(recovered)


# -- beat is down ------------------------------------------------------------------------------------------


def tell_overdue(entries: Sequence[str], since: int, at: int) -> None:
    """Send the mail that no beat runs and these entries are overdue, to all that care for one of them.

    One that cannot be sent is tried again, as long as no beat runs; this returns when that is done.

    :raises django.db.Error: when the database fails.
    """
    people = _People()
    rows = keys_of(entries)
    groups = people.groups([(name, people.of(rows.get(name))) for name in entries])
    # It ends the alarm before, whose end nobody saw.
    Alarm.objects.filter(over_at=None).update(over_at=as_stored(at), over_mailed_at=as_stored(at))
    # Addressees are noted before a mail is tried: one who misses the first mail gets that of the end.
    alarm = Alarm.objects.create(
        since=as_stored(since),
        raised_at=as_stored(at),
        entries=len(entries),
        mailed_to=[address for _names, addresses in groups for address in addresses],
    )
    due = _due(entries) if groups else {}
    mails = []
    for names, addresses in groups:
        told = [(name, rows.get(name), due.get(name)) for name in names]
        mails.append((addresses, *texts.overdue(told, since, people.site_url)))
    for pause in (*RETRIES, None):
        mails = [mail for mail in mails if not _send(*mail)]
        if not mails or pause is None or _is_ended_within(pause):
            return
        if not Alarm.objects.filter(pk=alarm.pk, over_at=None).exists():
            return


def _due(entries: Sequence[str]) -> dict[str, int | None]:
    """Return when these entries were due, as far as the store answers."""
    try:
        found = records_of(open_store(current_app), entries)
    except (StoreUnavailable, MisfireConfigError):
        return {}
    return {name: record.state.next_fire_time for name, record in found.items()}


def tell_recovered(at: int) -> None:
    """Note that a beat leads again; the next look tells of it.

    :raises django.db.Error: when the database fails.
    """
    Alarm.objects.filter(over_at=None).update(over_at=as_stored(at))


# -- beat is back, and what was missed ---------------------------------------------------------------------


def send_due(at: int) -> bool:
    """Send the mails about all that has not been told: alarms that are over, and missed runs.

    :returns: False when one could not be sent; the next call sends it.
    :raises django.db.Error: when the database fails.
    """
    people, moment = _People(), as_stored(at)
    records = _untold(people, moment)
    lately = [record for record in records if record.reason in OUTAGES]
    if lately:
        # The leading beat alone finds which runs an outage has missed.
        found = max(record.detected_at for record in lately)
        Alarm.objects.filter(over_at=None, raised_at__lte=found).update(over_at=found)
    alarms = list(_claim_alarms(moment))
    records = _claim(records, people, moment)
    told: list[tuple[Alarm | MissedFire, Collection[str]]]
    told = [(alarm, alarm.mailed_to) for alarm in alarms]
    told += [(record, people.of(record.periodic_task_id)) for record in records]
    all_went = True
    for items, addresses in people.groups(told):
        over = [item for item in items if isinstance(item, Alarm)]
        missed = [item for item in items if isinstance(item, MissedFire)]
        if not _send(addresses, *texts.missed(over, missed, people.site_url)):
            all_went = False
            Alarm.objects.filter(pk__in=[a.pk for a in over]).update(over_mailed_at=None)
            for some in in_chunks(missed):
                MissedFire.objects.filter(pk__in=[m.pk for m in some]).update(mailed_at=None)
    return all_went


def _untold(people: _People, moment: datetime) -> list[MissedFire]:
    """Return the records that somebody wants to hear of now, oldest first."""
    # A deploy is no alarm.
    found = MissedFire.objects.exclude(reason=Reason.RESTARTED.value).filter(
        mailed_at=None, detected_at__gt=moment - MAIL_WITHIN
    )
    recent = MissedFire.objects.filter(mailed_at__gt=moment - MAIL_INTERVAL)
    told = dict[object, set[str]]()
    for key, name, addresses in recent.values_list("periodic_task_id", "entry", "mailed_to"):
        told.setdefault(key or name, set()).update(addresses or ())
    wanted = []
    for record in found.order_by("pk")[:MOST_RECORDS]:
        addresses = set(people.of(record.periodic_task_id))
        known = told.get(record.periodic_task_id or record.entry, set())
        if addresses and (record.reason in OUTAGES or addresses - known):
            wanted.append(record)
    return wanted


def _claim_alarms(moment: datetime) -> Iterator[Alarm]:
    """Yield the alarms whose end nobody else tells."""
    for alarm in Alarm.objects.exclude(over_at=None).filter(over_mailed_at=None):
        if Alarm.objects.filter(pk=alarm.pk, over_mailed_at=None).update(over_mailed_at=moment):
            yield alarm


def _claim(records: Sequence[MissedFire], people: _People, moment: datetime) -> list[MissedFire]:
    """Return those of these records that nobody else tells of."""
    claimed = []
    # Records with the same addressees are claimed together, in few statements.
    of_people: dict[tuple[str, ...], list[MissedFire]] = {}
    for record in records:
        of_people.setdefault(people.of(record.periodic_task_id), []).append(record)
    for addresses, theirs in of_people.items():
        for some in in_chunks(theirs):
            rows = MissedFire.objects.filter(pk__in=[record.pk for record in some])
            if rows.filter(mailed_at=None).update(mailed_at=moment, mailed_to=list(addresses)):
                ours = set(rows.filter(mailed_at=moment).values_list("pk", flat=True))
                claimed += [record for record in some if record.pk in ours]
    return sorted(claimed, key=lambda record: record.pk)


# -- who wants mail ----------------------------------------------------------------------------------------


class _People:
    """Who wants mail about which row: the addresses of its policy, or else those of the settings."""

    def __init__(self) -> None:
        settings = _settings()
        self.site_url = (settings and settings.site_url) or ""
        self._all = settings.mail_to if settings else ()
        self._own = {
            key: tuple(found)
            for key, text in MisfirePolicy.objects.exclude(mail_to="").values_list(
                "periodic_task_id", "mail_to"
            )
            if (found := [address.strip() for address in text.split(",") if address.strip()])
        }

    def of(self, key: int | None) -> tuple[str, ...]:
        return self._all if key is None else self._own.get(key, self._all)

    @staticmethod
    def groups(items: Iterable[tuple[Any, Collection[str]]]) -> list[tuple[list[Any], list[str]]]:
        """Return who is told of which items: those that hear of the same ones share a mail."""
        of_each: dict[str, list[Any]] = {}
        for item, addresses in items:
            for address in dict.fromkeys(addresses):
                of_each.setdefault(address, []).append(item)
        groups: dict[tuple[int, ...], tuple[list[Any], list[str]]] = {}
        for address, theirs in of_each.items():
            groups.setdefault(tuple(map(id, theirs)), (theirs, []))[1].append(address)
        return list(groups.values())


def _settings() -> Settings | None:
    try:
        return read_settings(current_app)
    except MisfireConfigError:
        # Beat has reported it at its start.
        return None


def _send(addresses: Sequence[str], subject: str, text: str) -> bool:
    try:
        send_mail(subject, text, None, list(addresses))
    except Exception as exc:
        # The log leaves out the text of the error, which may have the address or the password of the server.
        say.error("no_mail", "no mail about misfires: %s", type(exc).__name__)
        return False
    return True


# -- a moment later ----------------------------------------------------------------------------------------


class _Waiting:
    """What a process that sends mail soon has of it."""

    lock, ends = threading.Lock(), threading.Event()
    thread: threading.Thread | None = None


def mail_soon() -> None:
    """Have what is due sent when nothing new has come for a moment; returns at once."""
    with _Waiting.lock:
        if _Waiting.thread is None or not _Waiting.thread.is_alive():
            _Waiting.thread = _in_thread(_send_when_quiet)


def is_wanted() -> bool:
    """Return True when anybody wants mail.

    :raises django.db.Error: when the database fails.
    """
    settings = _settings()
    return bool(settings and settings.mail_to) or MisfirePolicy.objects.exclude(mail_to="").exists()


def _send_when_quiet() -> None:
    newest: object = ()
    for _wait in range(MOST_WAITS):
        before, newest = newest, MissedFire.objects.order_by("-pk").values_list("pk", flat=True).first()
        if newest == before or _Waiting.ends.wait(QUIET):
            break
    for pause in (*RETRIES, None):
        with _Waiting.lock:
            # What comes from now on needs another look.
            _Waiting.thread = None
        if send_due(now()) or pause is None:
            return
        with _Waiting.lock:
            if _Waiting.thread is not None:
                # Another one looks, and tries this again as well.
                return
            _Waiting.thread = threading.current_thread()
        if _is_ended_within(pause):
            return


def _is_ended_within(pause: float) -> bool:
    """Wait so many seconds; return True when the process ends meanwhile."""
    # No connection is kept for that long.
    close_old_connections()
    return _Waiting.ends.wait(pause)


@atexit.register
def _finish() -> None:
    """Send what waits before the process ends."""
    _Waiting.ends.set()
    for thread in threading.enumerate():
        if thread.name == THREAD:
            thread.join(EXIT_TIMEOUT)


def _in_thread(do: Callable[[], object]) -> threading.Thread:
    """Run this where neither the watch nor a report has to wait for the mail server."""

    def run() -> None:
        try:
            if is_migrated():
                do()
        except Exception as exc:
            say.error("no_mail", "no mail about misfires: %s", type(exc).__name__)
        finally:
            connections.close_all()

    thread = threading.Thread(target=run, name=THREAD, daemon=True)
    thread.start()
    return thread
