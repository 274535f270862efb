"""Keeps the metrics' directory: emptied when the root starts, and tidied while workers come and go.

The numbers of a worker that ended are folded into one accumulator (`telemetry.metrics.folding`). The root alone does
it, since it alone outlives every worker.
"""

import asyncio
from pathlib import Path

from tidegate.telemetry.logging import get_logger
from tidegate.telemetry.metrics.folding import fold, start_empty

EVERY_S = 2.0


class MetricKeeper:
    """What the root does for metrics.

    >>> keeper = MetricKeeper(data_dir / "metrics")
    >>> keeper.begin()
    >>> await keeper.run()
    """

    def __init__(self, directory: Path, *, every_s: float = EVERY_S) -> None:
        self._directory = directory
        self._every_s = every_s
        self._log = get_logger(__name__)

    def begin(self) -> None:
        """Before the first worker. Metrics are worth no refused start: what cannot be done is logged."""
        try:
            start_empty(self._directory)
        except OSError as error:
            self._log.warning("metrics_not_kept", directory=str(self._directory), reason=error.strerror)

    async def run(self) -> None:
        """Until cancelled. A few milliseconds at most, where a worker has ended; else some microseconds."""
        failed = False
        while True:
            await asyncio.sleep(self._every_s)
            try:
                fold(self._directory)
                failed = False
            except Exception as error:  # noqa: BLE001 - the edge of a background task, whose end would end the server
                # A full disk, say: the files stay, and are counted as they are.
                if not failed:
                    self._log.warning("metrics_not_folded", directory=str(self._directory), reason=str(error))
                failed = True
