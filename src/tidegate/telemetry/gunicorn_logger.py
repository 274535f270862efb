"""gunicorn's lines in the one form of all lines: its `logger_class`."""

from typing import Any

from gunicorn.glogging import Logger

from tidegate.telemetry.logging import line_handler


class GunicornLogger(Logger):  # type: ignore[misc]  # gunicorn ships no types
    """Leaves every line to the root logger's handler.

    gunicorn's configuration names it: `logger_class = "tidegate.telemetry.gunicorn_logger.GunicornLogger"`.
    `configure_logging` must have run in the arbiter before.
    """

    def setup(self, cfg: Any) -> None:
        self.cfg = cfg
        self._access_log_enabled = False
        # The root logger's level decides.
        self.error_log.setLevel(0)
        # A worker copies these handlers to uvicorn's logger and ends its propagation, so they must be there.
        handler = line_handler()
        self.error_log.handlers = [handler] if handler is not None else []
        self.error_log.propagate = handler is None
        self.access_log.handlers = []
