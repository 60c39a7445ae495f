"""A small shop: one Django app whose work is done by scheduled tasks."""

from example_project.shop.celery import app as celery_app

__all__ = ["celery_app"]
