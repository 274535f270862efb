"""What has to be so before a server starts, beyond what each setting says: judged together, told at once."""

from tidegate.auth.guessing import is_guessed_soon
from tidegate.routing.catalogue import Catalogue
from tidegate.routing.configuration import CatalogueError, load_catalogue
from tidegate.server.refusal import StartRefused
from tidegate.settings import Settings, SettingsError
from tidegate.settings.secrets import placeholder


def require_conditions(settings: Settings) -> Catalogue:
    """The catalogue of these settings. Raises `StartRefused` with every fault of it, and of the bootstrap password."""
    faults: list[str] = []
    catalogue = None
    try:
        catalogue = load_catalogue(settings)
    except CatalogueError as error:
        faults += error.faults
    if settings.in_production and (fault := _password_fault(settings)):
        faults.append(fault)
    if catalogue is None or faults:
        raise StartRefused(*faults)
    return catalogue


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
