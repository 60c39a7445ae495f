"""What all commands share: the app, its entries and its store; errors in one line; exit codes."""

from __future__ import annotations

import getpass
import inspect
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import tzinfo
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache
from typing import Any, NoReturn

import click
from celery import Celery
from celery.exceptions import CeleryError, ImproperlyConfigured
from celery.utils.imports import load_extension_class_names, symbol_by_name

from celery_misfire import fleet, records
from celery_misfire.beat import MisfireMixin
from celery_misfire.cli import output
from celery_misfire.conf.entries import ConfiguredEntry
from celery_misfire.conf.settings import Settings
from celery_misfire.entry_record import EntryRecord
from celery_misfire.events import time_in
from celery_misfire.exceptions import BrokerUnavailable, MisfireError, StoreUnavailable
from celery_misfire.store.redis_store import RedisStore
from celery_misfire.texts import describe_error, one_line, quote_name, suggestion

#: The exit codes.
FINE, NOT_FINE, BAD_USAGE, NO_REDIS, NO_ENTRY = range(5)
#: The exit code after Ctrl-C, as of `tail -f`: that of a process which the signal ends.
INTERRUPTED = 130

#: Longest wait for one answer of Redis, in seconds: somebody waits for the command.
READ_TIMEOUT = 3.0
#: Longest line of an error, in characters.
LONGEST_ERROR = 1000

entry_option = click.option(
    "--entry",
    "entries",
    multiple=True,
    metavar="PATTERN",
    help="Only entries of this name; * and ? are wildcards. May be repeated.",
)


def who() -> str:
    """Return who asks, for those who read the log."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        # In a container the user may have no name.
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


class _Failure(click.ClickException):
    """Ends a command with one line and an exit code."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(one_line(text, LONGEST_ERROR))
        vars(self)["exit_code"] = exit_code


def fail(text: str, exit_code: int = BAD_USAGE) -> NoReturn:
    """End the command with one line and an exit code."""
    raise _Failure(text, exit_code)


class Session:
    """One call of a command.

    :param as_json: its answer is JSON.
    """

    def __init__(self, ctx: click.Context, as_json: bool) -> None:
        self._ctx, self.as_json = ctx, as_json
        self.command = str(ctx.info_name)

    @cached_property
    def app(self) -> Celery:
        """The app, with everything loaded that beat would load."""
        app: Celery = self._ctx.obj.app
        app.loader.import_default_modules()
        app.finalize()
        return app

    @cached_property
    def scheduler(self) -> type[MisfireMixin]:
        """The class of the scheduler whose entries these are."""
        named = self._ctx.meta.get("celery_misfire.cli.scheduler")
        given = named or self.app.conf.beat_scheduler
        try:
            aliases: dict[str, str] = dict(load_extension_class_names("celery.beat_schedulers"))  # type: ignore[arg-type] # wrong stubs
            cls = symbol_by_name(given, aliases=aliases)
        except Exception as exc:
            fail(f"scheduler {quote_name(str(given))}: {describe_error(exc)}")
        if isinstance(cls, type) and issubclass(cls, MisfireMixin):
            return cls
        if named:
            fail(f"scheduler {quote_name(named)} has no misfire handling. Use misfire or misfire-django.")
        # Beat may be told by -S on its own command line.
        return MisfireMixin

    @cached_property
    def _config(self) -> tuple[Settings, dict[str, ConfiguredEntry]]:
        return self.scheduler.configured(self.app)

    @property
    def settings(self) -> Settings:
        return self._config[0]

    @property
    def entries(self) -> dict[str, ConfiguredEntry]:
        """The entries as they are configured now, by name."""
        return self._config[1]

    @cached_property
    def store(self) -> RedisStore:
        return RedisStore.of(self.settings, READ_TIMEOUT)

    @cached_property
    def zone(self) -> tzinfo:
        """The time zone of the app, in which all times are shown and read."""
        zone: tzinfo = self.app.timezone
        return zone

    @cached_property
    def fleet(self) -> fleet.Fleet:
        """All beats and entries, as the store shows them."""
        return fleet.read(self.store, self.settings, self.entries)

    @property
    def page(self) -> output.Page:
        """What is written when the answer is no JSON."""
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        return output.Page(self.zone, no_color=bool(self._ctx.obj.no_color), width=width)

    @property
    def now(self) -> int:
        """The time, by the store's clock."""
        # A look at all records is spared where nobody needs one.
        return self.fleet.now if "fleet" in vars(self) else self._now

    @cached_property
    def _now(self) -> int:
        return self.store.time()

    def names(self, patterns: Sequence[str], known: Collection[str] | None = None) -> list[str]:
        """Return the entries that these patterns name, all of them for no pattern.

        :param known: the names of all entries; None: those that are configured, and those that beat knows.
        """
        if patterns and self.entries.keys() >= set(patterns):
            # They are names. To look at all records would take a while.
            return list(dict.fromkeys(patterns))
        found = dict.fromkeys(self.fleet.names if known is None else known)
        if not patterns:
            return list(found)
        chosen: dict[str, None] = {}
        for pattern in patterns:
            matching = [pattern] if pattern in found else [n for n in found if fnmatchcase(n, pattern)]
            if not matching:
                hint = suggestion(pattern, found) or (" There are no entries." if not found else "")
                fail(f"no entry {quote_name(pattern)}.{hint}", NO_ENTRY)
            chosen |= dict.fromkeys(matching)
        return list(chosen)

    def records(self, names: Sequence[str]) -> Mapping[str, EntryRecord]:
        """Return the records of these entries, and perhaps of more."""
        if "fleet" in vars(self):
            return self.fleet.records
        return records.loads_all(self.store.load(names))

    def answer(self, data: dict[str, Any], write: Callable[[output.Page], None]) -> None:
        """Give the answer: `data` as JSON, or what `write` puts on a page."""
        if self.as_json:
            self.echo_json(data)
        else:
            write(self.page)

    def echo_json(self, data: dict[str, Any]) -> None:
        """Write an answer as JSON, on one line."""
        # With an indent, json.dumps() takes six times as long.
        click.echo(json.dumps({"version": 1, "command": self.command} | data))

    def time(self, moment: int | None) -> str | None:
        """Return a moment as it is written in JSON."""
        return None if moment is None else _time_in(moment, self.zone)


# Many entries fire at the same times.
_time_in = lru_cache(maxsize=16_384)(time_in)


def command(name: str, **options: Any) -> Callable[[Callable[..., int | None]], click.Command]:
    """Make a function the command of this name: it gets a session, and returns an exit code or None."""

    def make(function: Callable[..., int | None]) -> click.Command:
        @click.command(name, **options)
        @click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
        @click.pass_context
        def call(ctx: click.Context, /, as_json: bool, **given: Any) -> None:
            session = Session(ctx, as_json)
            with _errors_in_words(session):
                code = function(session, **given)
            ctx.exit(code or FINE)

        # The options that the function was given before, and its words for --help.
        made: click.Command = call
        made.params += reversed(getattr(function, "__click_params__", []))
        made.help = inspect.getdoc(function)
        return made

    return make


@contextmanager
def _errors_in_words(session: Session) -> Iterator[None]:
    """Turn errors into one line and an exit code; with --json, into an object as well."""
    try:
        try:
            yield
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            # Click ends quietly when nobody reads any more.
            raise
        except KeyboardInterrupt:
            raise click.exceptions.Exit(INTERRUPTED) from None
        except StoreUnavailable as exc:
            fail(str(exc), NO_REDIS)
        except BrokerUnavailable as exc:
            fail(f"the broker cannot be reached: {exc}", NOT_FINE)
        except (MisfireError, CeleryError, ImproperlyConfigured) as exc:
            fail("; ".join(str(exc).splitlines()))
        except Exception as exc:
            fail(f"unexpected error: {describe_error(exc)}")
    except click.ClickException as exc:
        if session.as_json:
            session.echo_json({"error": exc.format_message(), "exit_code": exc.exit_code})
        raise
