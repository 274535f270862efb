"""Settings that belong to the root: they are as they were at its start, whatever a new generation reads.

The root bound the sockets and holds the data directory; what a port speaks all generations at it must. What differs is
named, and takes effect at the next start.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tidegate.server.certificate import CERTIFICATE, KEY
from tidegate.server.refusal import StartRefused
from tidegate.settings import Settings

_ENVIRONMENT = "TIDEGATE_ENVIRONMENT"
_DATA_DIR = "TIDEGATE_DATA_DIR"


def root_settings(settings: Settings) -> dict[str, Any]:
    """By variable, as JSON takes them. None of them is a secret."""
    server = settings.server
    return {
        _ENVIRONMENT: settings.environment,
        _DATA_DIR: str(settings.data_dir),
        "TIDEGATE_SERVER__HOST": server.host,
        "TIDEGATE_SERVER__PORT": server.port,
        "TIDEGATE_SERVER__MANAGEMENT_HOST": server.management_host,
        "TIDEGATE_SERVER__MANAGEMENT_PORT": server.management_port,
        CERTIFICATE: None if server.tls_certificate is None else str(server.tls_certificate.absolute()),
        KEY: None if server.tls_key is None else str(server.tls_key.absolute()),
    }


def as_the_root_has_it(settings: Settings, of_root: Mapping[str, Any]) -> Settings:
    """With the root's data directory and certificate; what else is the root's is handed down in other ways."""
    if not of_root:
        return settings
    files = {name: of_root.get(variable) for name, variable in (("tls_certificate", CERTIFICATE), ("tls_key", KEY))}
    paths = {name: None if path is None else Path(path) for name, path in files.items()}
    server = settings.server.model_copy(update=paths)
    return settings.model_copy(update={"data_dir": Path(of_root[_DATA_DIR]), "server": server})


def differing(settings: Settings, of_root: Mapping[str, Any]) -> list[str]:
    """The variables that the root has otherwise. Raises `StartRefused` where no server may run beside another so."""
    names = [name for name, value in root_settings(settings).items() if of_root.get(name, value) != value]
    if _ENVIRONMENT in names:
        raise StartRefused(f"{_ENVIRONMENT}: a running server stays {of_root[_ENVIRONMENT]}; stop it and start another")
    return names
