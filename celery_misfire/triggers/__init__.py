"""Any Celery schedule as arithmetic on fire times."""
