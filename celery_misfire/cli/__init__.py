"""``celery -A proj misfire``: what people who run beat ask it, and ask of it.

Every ``celery`` command imports this module, so the commands are imported when they are called.
"""

from __future__ import annotations

import atexit
import gc
import sys
from importlib import import_module
from io import TextIOWrapper
from typing import Any

import click

__all__ = ["misfire"]

#: The module of each command.
_MODULES = {
    "status": "reading",
    "next": "agenda",
    "missed": "reading",
    "log": "reading",
    "simulate": "simulate",
    "run": "run",
    "pause": "changing",
    "resume": "changing",
    "hold": "changing",
    "health": "health",
    "doctor": "doctor",
    "watch": "health",
}


class BadUsage(click.ClickException):
    """A command was not called as it should be."""

    exit_code = 2


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _MODULES:
            return None
        module = import_module(f"{__name__}.{_MODULES[cmd_name]}")
        command: click.Command = getattr(module, f"{cmd_name}_")
        return command

    def invoke(self, ctx: click.Context) -> Any:
        # A command makes hardly any garbage. Among thousands of entries, Python looked for it during a third
        # of the time, and most of that at the end.
        gc.set_threshold(100_000, 50, 100)
        atexit.register(gc.freeze)
        try:
            return super().invoke(ctx)
        except click.UsageError as exc:
            # The error takes one line, as every error of these commands.
            raise BadUsage(exc.format_message()) from None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _MODULES and not args[0].startswith("-"):
            from celery_misfire.texts import quote_name, suggestion

            ctx.fail(f"no command {quote_name(args[0])}.{suggestion(args[0], _MODULES)}")
        return super().resolve_command(ctx, args)


@click.group("misfire", cls=_Commands)
@click.option(
    "-S",
    "--scheduler",
    metavar="CLASS",
    help="Beat's scheduler, if you name it by `celery beat -S` and not in the settings.",
)
@click.pass_context
def misfire(ctx: click.Context, scheduler: str | None) -> None:
    """Show who leads, what is due and what was missed; run, pause and hold entries.

    Exit codes: 0 fine; 1 not fine, for example overdue or no leader; 2 usage or configuration; 3 Redis cannot
    be reached; 4 no such entry.
    """
    # A terminal that lacks a letter of a name shows its number.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    ctx.meta[f"{__name__}.scheduler"] = scheduler
