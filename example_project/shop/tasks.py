"""The scheduled work of the shop. Each task says which fire time it runs for."""

from __future__ import annotations

import random
from datetime import timedelta

from celery import shared_task
from django.db.models import F
from django.utils import timezone

from celery_misfire import Fire, current_fire
from example_project.shop.models import Basket, Invoice, Report, Run, StockPrice


@shared_task(name="shop.make_report")
def make_report() -> None:
    fire = current_fire()
    # The time that the report is for, even when it is made later.
    until = fire.scheduled_fire_time if fire else timezone.now()
    report = Report.objects.create(until=until, runs=Run.objects.filter(started_at__lt=until).count())
    _journal(fire, f"{report.runs} runs until {until:%H:%M:%S}")


@shared_task(name="shop.fetch_stock_price")
def fetch_stock_price() -> None:
    cents = random.randint(9_000, 11_000)
    StockPrice.objects.update_or_create(symbol="SHOP", defaults={"cents": cents})
    _journal(current_fire(), f"the share stands at {cents / 100:.2f}")


@shared_task(name="shop.clean_up")
def clean_up() -> None:
    old = Basket.objects.filter(created_at__lt=timezone.now() - timedelta(seconds=5))
    _journal(current_fire(), f"{old.delete()[0]} old baskets removed")


@shared_task(name="shop.remind")
def remind() -> None:
    invoice, _ = Invoice.objects.get_or_create(number=1)
    Invoice.objects.filter(pk=invoice.pk).update(reminders=F("reminders") + 1)
    _journal(current_fire(), f"reminder {invoice.reminders + 1} of invoice 1")


@shared_task(name="shop.fill_basket")
def fill_basket() -> None:
    Basket.objects.create()
    _journal(current_fire(), "a basket was filled")


@shared_task(name="shop.close_invoice")
def close_invoice() -> None:
    Invoice.objects.update_or_create(number=1, defaults={"closed_at": timezone.now()})
    _journal(current_fire(), "invoice 1 is closed")


def _journal(fire: Fire | None, done: str) -> None:
    """Print what was done, and note the run if beat sent it."""
    if fire is None:
        print(f"by hand: {done}", flush=True)
        return
    Run.objects.create(
        entry=fire.entry,
        scheduled_fire_time=fire.scheduled_fire_time,
        fire_time=fire.fire_time,
        outcome=fire.outcome,
        missed_count=fire.missed_count,
    )
    late = fire.fire_time - fire.scheduled_fire_time
    stands_for = f", stands for {fire.missed_count}" if fire.missed_count > 1 else ""
    print(f"{fire.entry}: {done} ({fire.outcome}, {late.total_seconds():.1f} s late{stands_for})", flush=True)
