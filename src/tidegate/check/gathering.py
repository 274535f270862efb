"""Gathering a `Subject`: the root and every worker by the control socket, then the server's own port.

Whatever does not answer within its bound is missing in the subject, and the items that need it are unknown.
"""

import ast
import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from urllib.parse import urlsplit

from tidegate.check.live import stream
from tidegate.check.probes import Probes
from tidegate.check.subject import Facts, Live, Subject
from tidegate.server.control import NoRoot, ask_root
from tidegate.server.cpu import usable_cpus
from tidegate.tls import own_context

_ANSWER_WITHIN_S = 15.0
_ENVIRONMENT = ("environ", "environb", "getenv", "getenvb")
_MAY_READ_IT = ("settings/loading.py", "settings/references.py")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a check is made with. `key` proves streams, by `model` where it is named; `digests` are of this shell's
    settings, None where they cannot be read.
    """

    data_dir: Path
    key: str | None = None
    model: str | None = None
    digests: Mapping[str, str] | None = None


async def gather(asked: Asked) -> Subject:
    """Raises `NoRoot` where no server runs there."""
    root = await _report(asked.data_dir)
    workers = _telling(root)
    if not root.get("url"):
        raise NoRoot(f"The server in {asked.data_dir} is an older version's, which cannot be checked: replace it.")
    origins = list(workers[0]["http"]["origins"]) if workers else []
    context = _context(root)
    await _require_shown(root, context)
    async with Probes(root["url"], context) as probes:
        seen = await probes.everything(origins=origins, management_url=root.get("management_url"))
        countdown = await probes.countdown()
        seen["forged_address"] = await probes.forged_address()
    live, skipped = await _live(asked, root, workers, context)
    told = {worker["pid"] for worker in workers}
    current = [worker for worker in root["workers"] if worker["generation"] == root["generation"]]
    return Subject(
        root=root,
        workers=tuple(workers),
        silent=tuple(each["pid"] for each in current if each["pid"] not in told and each.get("state") != "gone"),
        seen=seen,
        countdown=countdown,
        live=live,
        skipped_live=skipped,
        cpus=usable_cpus(),
        strays=tuple(await asyncio.to_thread(_strays, resources.files("tidegate"), "")),
        differs_from_shell=_differing(asked.digests, workers),
        address=urlsplit(root["url"]).hostname or "",
    )


async def _report(data_dir: Path, request_id: str | None = None) -> Facts:
    ask = {"ask": "facts", "request_id": request_id}
    answer = await asyncio.to_thread(ask_root, data_dir, ask, within_s=_ANSWER_WITHIN_S)
    if not isinstance(answer.get("done"), dict):
        raise NoRoot(f"The server in {data_dir} is an older version's, which cannot be checked: replace it.")
    done: Facts = answer["done"]
    return done


def _telling(root: Facts) -> list[Facts]:
    """Workers of the generation that serves. What others told is of before."""
    current = (worker for worker in root["workers"] if worker["generation"] == root["generation"])
    return [worker["facts"] for worker in current if worker.get("facts")]


def _context(root: Facts) -> ssl.SSLContext | None:
    """What knows the server by its own certificate, None for one in the clear."""
    certificate = root.get("certificate")
    if certificate is None:
        return None
    try:
        return own_context(Path(certificate))
    except OSError as error:
        raise NoRoot(f"{certificate}, which the server shows, cannot be read here: {error}") from None


async def _require_shown(root: Facts, context: ssl.SSLContext | None) -> None:
    """Raises `NoRoot` where the server shows another certificate than is on disk: no probe would be answered."""
    if context is None:
        return
    url = urlsplit(root["url"])
    try:
        async with asyncio.timeout(_ANSWER_WITHIN_S):
            _, writer = await asyncio.open_connection(url.hostname, url.port, ssl=context)
    except ssl.SSLCertVerificationError:
        told = f"The server shows another certificate than {root['certificate']} holds now"
        raise NoRoot(f"{told}: run `tidegate reload`, then check again.") from None
    except (OSError, TimeoutError):
        # The probes tell it.
        return
    writer.transport.abort()


async def _live(
    asked: Asked, root: Facts, workers: list[Facts], context: ssl.SSLContext | None
) -> tuple[Live | None, str]:
    """What a stream did, or why there was none."""
    if asked.key is None:
        return None, "name a key with --key-file to prove it by a stream"
    if not workers:
        return None, "no worker answered"
    free: list[str] = workers[0]["free_models"]
    model = asked.model or next(iter(free), None)
    if model is None:
        return None, "no model is an echo: name one with --model, which costs a few tokens"

    async def look(request_id: str) -> list[Facts]:
        return _telling(await _report(asked.data_dir, request_id))

    return await stream(root["url"], asked.key, model, is_echo=model in free, look=look, context=context), ""


def _differing(digests: Mapping[str, str] | None, workers: list[Facts]) -> tuple[str, ...]:
    if digests is None or not workers:
        return ()
    theirs = workers[0]["settings"]["digests"]
    return tuple(sorted(name for name, digest in digests.items() if theirs.get(name) != digest))


def _strays(folder: Traversable, where: str) -> list[str]:
    """Modules of the installed package that read the environment beside the settings."""
    found = []
    for each in folder.iterdir():
        path = f"{where}{each.name}"
        if each.is_dir():
            found += _strays(each, f"{path}/")
        elif each.name.endswith(".py") and path not in _MAY_READ_IT and _reads_the_environment(each.read_text("utf-8")):
            found.append(path)
    return sorted(found)


def _reads_the_environment(text: str) -> bool:
    # Parsing all of them would take a second.
    if not any(name in text for name in _ENVIRONMENT):
        return False
    return any(_is_of_environment(node) for node in ast.walk(ast.parse(text)))


def _is_of_environment(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return node.value.id == "os" and node.attr in _ENVIRONMENT
    if isinstance(node, ast.ImportFrom):
        return node.module == "os" and any(alias.name in _ENVIRONMENT for alias in node.names)
    return False
