"""What the beats of one namespace must have in common: each describes itself, and descriptions are compared.

A description has a digest of each setting and entry, and so tells what differs and no value.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from typing import Any

from celery import Celery

from celery_misfire.conf.entries import ConfiguredEntry
from celery_misfire.conf.settings import Settings
from celery_misfire.texts import quote, quote_names

#: So many entries are named.
NAMED = 5

# Not compared: beats may reach one Redis in different ways, each has its own port, and policies are compared
# entry by entry.
_MAY_DIFFER = {
    *("redis_url", "redis_options", "namespace", "key_prefix", "policies", "metrics_port"),
    # The site's alone.
    *("site_url", "health_token"),
}

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")

# Entries that have the same policy share one object.
_policy_text = lru_cache(maxsize=1024)(repr)


def describe(app: Celery, settings: Settings, entries: Mapping[str, ConfiguredEntry]) -> tuple[str, str]:
    """Return the descriptions of a beat and of its entries (task, schedule and policy), as JSON texts."""
    names = [f.name for f in fields(settings) if f.name not in _MAY_DIFFER]
    given = {f"misfire_{name}": _digest(getattr(settings, name)) for name in names}
    given |= {"timezone": _digest(str(app.timezone))}
    given |= {"misfire_instructions": _digest(sorted(settings.instructions.items()))}
    texts = json.dumps({name: _entry(entry) for name, entry in entries.items()}, sort_keys=True)
    return json.dumps({"app": app.main, "settings": given, "entries": _digest(texts)}, sort_keys=True), texts


def _entry(entry: ConfiguredEntry) -> str:
    keys = entry.keys
    schedule = keys["schedule"]
    # Celery shows an interval in whole seconds.
    shown_as = getattr(schedule, "run_every", schedule), getattr(schedule, "relative", keys.get("relative"))
    return _digest(f"{keys['task']} {bool(shown_as[1])} {_text(shown_as[0])} {_policy_text(entry.policy)}")


def _text(value: object) -> str:
    try:
        # Without addresses: they differ from process to process.
        return _ADDRESS.sub("", repr(value))
    except Exception:
        return type(value).__name__


def _digest(value: object) -> str:
    text = value if isinstance(value, str) else _text(value)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:8]


def difference(ours: tuple[str, str], theirs: tuple[str, str]) -> str:
    """Return in words what differs, nothing when nothing does or `theirs` is no description."""
    try:
        (our_beat, our_entries), (beat, entries) = map(_parsed, ours), map(_parsed, theirs)
        settings, known = our_beat["settings"], beat["settings"]
        # A setting that one of the two does not know is that of another version.
        unequal = [str(name) for name in settings if known.get(name, settings[name]) != settings[name]]
        found = [f"the app is {quote(our_beat['app'])} here and {quote(beat['app'])} there"]
        found = found if our_beat["app"] != beat["app"] else []
        found += [", ".join(unequal)] if unequal else []
        both = our_entries.keys() & entries.keys()
        for names, where in (
            ({name for name in both if our_entries[name] != entries[name]}, "unequal"),
            (our_entries.keys() - both, "only here"),
            (entries.keys() - both, "only there"),
        ):
            if names:
                found.append(f"{where}: {_named(names)}")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return ""
    return "; ".join(found)


def _parsed(text: str) -> dict[str, Any]:
    found = json.loads(text)
    return found if isinstance(found, dict) else {}


def _named(names: set[str]) -> str:
    return f"{'entry' if len(names) == 1 else 'entries'} {quote_names(sorted(names), NAMED)}"
