"""What has to be so before a server starts, beyond what each setting says: judged together, told at once."""

from dataclasses import dataclass

from tidegate.auth.guessing import is_guessed_soon
from tidegate.routing.catalogue import Catalogue
from tidegate.routing.configuration import CatalogueError, CatalogueSource, parse_catalogue, read_catalogue
from tidegate.server.certificate import CertificateError, pair_of
from tidegate.server.refusal import StartRefused
from tidegate.settings import Settings, SettingsError
from tidegate.settings.secrets import placeholder


@dataclass(frozen=True, slots=True)
class Conditions:
    """The catalogue that a server starts with, and what was written of it."""

    source: CatalogueSource
    catalogue: Catalogue


def require_conditions(settings: Settings) -> Catalogue:
    """The catalogue of these settings.

    Raises `StartRefused` with every fault of it, of the bootstrap password and of the certificate.
    """
    return starting_conditions(settings).catalogue


def starting_conditions(settings: Settings) -> Conditions:
    """The same with what was written."""
    faults: list[str] = []
    conditions = None
    try:
        source = read_catalogue(settings)
        conditions = Conditions(source, parse_catalogue(settings, source))
    except CatalogueError as error:
        faults += error.faults
    if settings.in_production and (fault := _password_fault(settings)):
        faults.append(fault)
    try:
        pair_of(settings.server)
    except CertificateError as error:
        faults.append(error.fault)
    if conditions is None or faults:
        raise StartRefused(*faults)
    return conditions


def require_shared_stores(settings: Settings, workers: int) -> None:
    """What several workers share must be outside of them, in development too. Raises `StartRefused`."""
    if workers == 1:
        return
    faults = []
    if settings.redis.url is None:
        faults.append("TIDEGATE_REDIS__URL: needed for more than one worker; or set TIDEGATE_SERVER__WORKERS=1")
    if settings.on_sqlite:
        faults.append("TIDEGATE_DATABASE__URL: SQLite serves one worker; use PostgreSQL or TIDEGATE_SERVER__WORKERS=1")
    if faults:
        raise StartRefused(*faults)


def every_fault(refusal: SettingsError) -> list[str]:
    """The faults of settings that were refused, and of what they name where that much can be judged."""
    if refusal.settings is None:
        return refusal.faults
    try:
        require_conditions(refusal.settings)
    except StartRefused as further:
        return [*refusal.faults, *further.faults]
    return refusal.faults


def _password_fault(settings: Settings) -> str | None:
    given = settings.bootstrap
    if given.admin_password is None or given.admin_email is None:
        return None
    password = given.admin_password.get_secret_value()
    told = placeholder(password) or ("is easily guessed" if is_guessed_soon(password, given.admin_email) else None)
    if told is None:
        return None
    return (
        f"TIDEGATE_BOOTSTRAP__ADMIN_PASSWORD: the password {told}; set a stronger one, "
        "or remove it once the admin has signed in"
    )
