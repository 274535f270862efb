"""What development prints when the server is ready: where it is, what was made just now, and a line to paste.

A generated password and key are shown this once. The line reads the key from its file, so that it stays out of the
shell's history.
"""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from tidegate.server.certificate import Pair

_QUESTION = "Tell me a story about the sea."


def banner(
    url: str,
    data_dir: Path,
    model: str | None,
    made: Mapping[str, str] | None,
    *,
    management_url: str | None = None,
    certificate: Pair | None = None,
) -> str:
    """`made` is what the prepare step generated, `model` the first of the catalogue.

    `management_url` is where management has a port of its own, `certificate` what the server shows.
    """
    lines = ["", f"Tidegate is ready at {url}", f"  dashboard  {management_url or url}/", f"  API        {url}/v1"]
    lines += [f"  management {management_url}/api"] if management_url else []
    lines.append(credentials(made))
    if model is not None:
        lines += [
            "  Paste this to see tokens arrive:",
            "",
            curl_line(url, data_dir / "first-key", model, certificate),
            "",
        ]
    return "\n".join([*lines, ""])


def credentials(made: Mapping[str, str] | None) -> str:
    """The part that is shown even where the start fails after it: nobody could learn the password later."""
    made = made or {}
    lines = []
    if "admin_password" in made:
        lines += [f"    e-mail     {made['admin_email']}", f"    password   {made['admin_password']}"]
        lines += ["               (made up, so it ends within days: choose your own on the dashboard)"]
    if "api_key" in made:
        lines += [f"    API key    {made['api_key']}"]
    return "\n".join(["", "  The first admin and key, shown only now:", *lines, ""]) if lines else ""


def curl_line(url: str, key_file: Path, model: str, certificate: Pair | None = None) -> str:
    """One line for a POSIX shell. Where no key was generated the caller has one of their own to put in.

    With a certificate it is asked for by a name that stands in it, and is trusted by its file: it may be one's own.
    """
    asked, how = url, ""
    if certificate is not None:
        asked, how = _by_name(url, certificate)
    key = f"$(cat {shlex.quote(str(key_file))})" if key_file.is_file() else "YOUR_KEY"
    body = json.dumps({"model": model, "stream": True, "messages": [{"role": "user", "content": _QUESTION}]})
    return (
        f'curl -N {how}{asked}/v1/chat/completions -H "Authorization: Bearer {key}"'
        f" -H 'Content-Type: application/json' -d {shlex.quote(body)}"
    )


def _by_name(url: str, certificate: Pair) -> tuple[str, str]:
    """The URL with a name of the certificate, and what curl is to be told with it."""
    at = urlsplit(url)
    trusted = f"--cacert {shlex.quote(str(certificate.path))} "
    names = [name for name in certificate.names if not name.startswith("*")]
    if at.hostname in names or not names:
        return url, trusted
    name = "localhost" if "localhost" in names else names[0]
    host = f"[{at.hostname}]" if ":" in (at.hostname or "") else at.hostname
    written = f"[{name}]" if ":" in name else name
    return f"https://{written}:{at.port}", f"{trusted}--connect-to ::{host}:{at.port} "
