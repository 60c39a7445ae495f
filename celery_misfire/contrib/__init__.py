"""What celery-misfire adds to other frameworks; each is imported only by those who use it."""
