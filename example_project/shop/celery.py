import os

from celery import Celery

import celery_misfire

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "example_project.shop.settings")

app = Celery("shop")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
celery_misfire.install(app)
