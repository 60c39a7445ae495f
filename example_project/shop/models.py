from django.db import models


class Run(models.Model):
    """The shop's journal: one row for each run of a scheduled task, whatever the task does."""

    entry = models.CharField(max_length=100)
    scheduled_fire_time = models.DateTimeField()
    fire_time = models.DateTimeField()
    outcome = models.CharField(max_length=20)
    missed_count = models.PositiveIntegerField()
    started_at = models.DateTimeField(auto_now_add=True)


class Report(models.Model):
    """How many tasks had run by a certain time."""

    until = models.DateTimeField()
    runs = models.PositiveIntegerField()


class StockPrice(models.Model):
    """The last known price of a share."""

    symbol = models.CharField(max_length=10, unique=True)
    cents = models.PositiveIntegerField()
    fetched_at = models.DateTimeField(auto_now=True)


class Basket(models.Model):
    """A basket that somebody filled and left."""

    created_at = models.DateTimeField(auto_now_add=True)


class Invoice(models.Model):
    number = models.PositiveIntegerField(unique=True)
    reminders = models.PositiveIntegerField(default=0)
    closed_at = models.DateTimeField(null=True)
