"""Prometheus' text as a test asks for it: by name and labels."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tidegate.telemetry.metrics.exposition import rendered


@dataclass(frozen=True)
class Scrape:
    """What one scrape told.

    >>> Scrape.of(body).value("tidegate_requests_total", outcome="completed")
    """

    samples: tuple[Sample, ...]

    @classmethod
    def of(cls, body: bytes) -> "Scrape":
        families = text_string_to_metric_families(body.decode())
        return cls(tuple(sample for family in families for sample in family.samples))

    @classmethod
    def read(cls, directory: Path) -> "Scrape":
        """Of a directory of metrics, without a server."""
        return cls.of(rendered(directory, ()))

    def find(self, name: str, **labels: str) -> Iterator[Sample]:
        for sample in self.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                yield sample

    def value(self, name: str, **labels: str) -> float:
        """The sum of all that match; 0 where nothing does."""
        return sum(sample.value for sample in self.find(name, **labels))

    def values_of(self, label: str) -> set[str]:
        """All that a label says anywhere."""
        return {sample.labels[label] for sample in self.samples if label in sample.labels}
