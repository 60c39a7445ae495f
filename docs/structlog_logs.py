"""The lines of beat and the workers as JSON, by structlog."""

import structlog
from celery.signals import after_setup_logger, after_setup_task_logger


@after_setup_logger.connect
@after_setup_task_logger.connect
def log_json(logger, **_):
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            # This one takes our fields over.
            structlog.stdlib.ExtraAdder(),
            structlog.processors.TimeStamper(fmt="iso"),
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
    )
    for handler in logger.handlers:
        handler.setFormatter(formatter)
