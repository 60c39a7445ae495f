"""Misfire handling for django-celery-beat: the scheduler on the database, and the admin.

Add ``"celery_misfire.contrib.django"`` to ``INSTALLED_APPS`` after ``django.contrib.admin`` and
``django_celery_beat``, and set ``CELERY_BEAT_SCHEDULER`` to
``"celery_misfire.contrib.django.beat:DatabaseScheduler"``.
"""
