"""Apps that run in the test's own process, beside whatever else holds it up: their look-ups are given longer."""

from tidegate.auth.authenticator import Authenticator
from tidegate.auth.principal_cache import CacheBounds


def be_patient(authenticator: Authenticator) -> None:
    """A credential's look-up takes up to 30 s before it is a 503: 1 s is missed where others keep both cores."""
    authenticator._cache._bounds = CacheBounds(answer_s=30)
