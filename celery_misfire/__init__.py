"""Quartz-grade misfire handling for Celery Beat: no scheduled run is silently lost, doubled, or burst."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery import Celery

    from celery_misfire.fire import Fire, current_fire
    from celery_misfire.misfire import MisfireInstruction, MisfirePolicy, MissedFire
    from celery_misfire.simulation import simulate

__all__ = [
    "Fire",
    "MisfireInstruction",
    "MisfirePolicy",
    "MissedFire",
    "current_fire",
    "install",
    "simulate",
]


def install(app: Celery) -> Celery:
    """Install the worker side and the state MISSED in an app, where the app is made.

    A worker of this app then judges late starts, drops second messages and watches beat. In every process
    ``AsyncResult``, ``ResultSet`` and ``GroupResult`` of this app treat MISSED as an end, as they do FAILURE.
    The configuration may come later. A second call does nothing.

    :returns: the app.
    """
    # Late, so that importing this package stays light.
    from celery.signals import worker_init

    from celery_misfire import result

    # Celery's current_app is a stand-in, and no worker's app is that.
    app = getattr(app, "_get_current_object", lambda: app)()

    def install_in(sender: Any, **_: Any) -> None:
        if sender.app is app:
            from celery_misfire import worker

            worker.install(sender)

    result.install(app)
    worker_init.connect(install_in, weak=False, dispatch_uid=f"celery_misfire {id(app)}")
    return app


#: The public names, and their modules. They are loaded on demand: pytest imports this package at each start.
_MODULES = {
    "Fire": "fire",
    "MisfireInstruction": "misfire",
    "MisfirePolicy": "misfire",
    "MissedFire": "misfire",
    "current_fire": "fire",
    "simulate": "simulation",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("celery-misfire")
    if name in _MODULES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
