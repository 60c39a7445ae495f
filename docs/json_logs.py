"""The lines of beat and the workers as JSON, by python-json-logger."""

from celery.signals import after_setup_logger, after_setup_task_logger
from pythonjsonlogger.json import JsonFormatter


@after_setup_logger.connect
@after_setup_task_logger.connect
def log_json(logger, **_):
    fields = ["asctime", "levelname", "name", "processName", "message"]
    for handler in logger.handlers:
        handler.setFormatter(JsonFormatter(fields))
