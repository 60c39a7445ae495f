"""The health of the fleet for monitors, as JSON and as a badge: for staff, and for who shows the token."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery import current_app
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils.cache import add_never_cache_headers
from django.utils.crypto import constant_time_compare
from django.utils.html import escape
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from celery_misfire.conf.settings import read_settings
from celery_misfire.contrib.django import moments
from celery_misfire.contrib.django.admin.fleet_state import FleetState, look
from celery_misfire.contrib.django.database import is_migrated
from celery_misfire.exceptions import MisfireConfigError

if TYPE_CHECKING:
    from celery_misfire.contrib.django.admin.fleet import FleetAdmin

View = Callable[[HttpRequest], HttpResponse]

#: The width of a character of the badge, and what stands around a text, in pixels.
_CHARACTER, _MARGIN = 7, 12


def health_view(model_admin: FleetAdmin) -> View:
    """Return the view that answers 200 when beat is well and nothing is overdue, else 503."""

    def answer(state: FleetState | None) -> HttpResponse:
        found = _health(state)
        return JsonResponse(found, status=200 if found["healthy"] else 503)

    return _guarded(model_admin, answer)


def badge_view(model_admin: FleetAdmin) -> View:
    """Return the view of the same as a picture, always with status 200, as browsers show no other."""
    return _guarded(model_admin, _badge)


def _guarded(model_admin: FleetAdmin, answer: Callable[[FleetState | None], HttpResponse]) -> View:
    def view(request: HttpRequest) -> HttpResponse:
        if request.method not in ("GET", "HEAD"):
            response: HttpResponse = JsonResponse({"detail": "Use GET."}, status=405)
        elif _may_ask(model_admin, request):
            response = answer(look(moments.now()) if is_migrated() else None)
        else:
            response = JsonResponse({"detail": "Log in, or show the token."}, status=403)
        add_never_cache_headers(response)
        return response

    # For Django's LoginRequiredMiddleware: who shows the token needs no login.
    view.login_required = False  # type: ignore[attr-defined]
    return view


def _may_ask(model_admin: FleetAdmin, request: HttpRequest) -> bool:
    site = model_admin.admin_site
    if site.has_permission(request) and model_admin.has_view_permission(request):
        return True
    try:
        token = read_settings(current_app).health_token
    except MisfireConfigError:
        return False
    kind, _space, shown = request.headers.get("Authorization", "").partition(" ")
    if kind.lower() != "bearer":
        # A picture cannot send a header.
        shown = request.GET.get("token", "")
    return token is not None and constant_time_compare(shown.strip(), token)


def _health(state: FleetState | None) -> dict[str, Any]:
    if state is None:
        return {"healthy": False, "reason": "migrations are missing"}
    overdue, fleet = state.count("overdue"), state.fleet
    reason = "redis does not answer, or cannot be read" if fleet is None else state.alarm
    if not reason and overdue:
        reason = f"{overdue} tasks are overdue"
    hold = fleet and fleet.hold
    return {
        "healthy": not reason,
        "reason": reason or None,
        "leader": (fleet and fleet.leader) or None,
        "standbys": [str(beat) for beat in fleet.standbys] if fleet else [],
        "held_until": moments.as_text(hold.until) if hold and hold.until else None,
        "tasks": len(state.lines),
        "overdue": overdue if fleet else None,
        "open_missed_runs": state.missed,
    }


def _badge(state: FleetState | None) -> HttpResponse:
    found = _health(state)
    if state is None or state.fleet is None or not state.fleet.leader:
        text, colour = _("down") if state and state.fleet else _("not known"), "#ba2121"
    elif not found["healthy"]:
        overdue = found["overdue"]
        text, colour = ngettext("%(n)d overdue", "%(n)d overdue", overdue) % {"n": overdue}, "#ba2121"
        text = text if overdue else _("not well")
    elif state.missed:
        text = ngettext("%(n)d missed", "%(n)d missed", state.missed) % {"n": state.missed}
        colour = "#8a4b00"
    else:
        text, colour = _("up"), "#0b6e4f"
    return HttpResponse(_svg("beat", str(text), colour), content_type="image/svg+xml")


def _svg(name: str, text: str, colour: str) -> str:
    left, right = (len(words) * _CHARACTER + _MARGIN for words in (name, text))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" role="img" '
        f'aria-label="{escape(name)}: {escape(text)}">'
        f'<rect width="{left + right}" height="20" rx="3" fill="#444"/>'
        f'<path d="M{left} 0h{right - 3}a3 3 0 0 1 3 3v14a3 3 0 0 1-3 3h-{right - 3}z" fill="{colour}"/>'
        '<g fill="#fff" text-anchor="middle" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">'
        f'<text x="{left / 2}" y="14">{escape(name)}</text>'
        f'<text x="{left + right / 2}" y="14">{escape(text)}</text></g></svg>'
    )
