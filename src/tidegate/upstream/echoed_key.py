"""The key that an upstream was sent never comes back by what it says: in an error's text, a header, an id.

An upstream, or a proxy before it, may repeat the request's `Authorization` header. What it writes into a successful
answer's body passes byte for byte and is not looked at.
"""

from tidegate.routing.catalogue import Upstream

MASKED = "[key]"


def key_of(upstream: Upstream) -> str | None:
    return None if upstream.api_key is None else upstream.api_key.get_secret_value()


def without_key(text: str, key: str | None) -> str:
    """The text with the key masked, where it stands in it.

    >>> without_key("Incorrect API key: sk-tide", "sk-tide")
    'Incorrect API key: [key]'
    """
    return text.replace(key, MASKED) if key is not None and key in text else text
