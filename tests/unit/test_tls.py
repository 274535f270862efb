"""Contexts of TLS are made in one place, and speak 1.2 at least; a pair is judged before it is shown."""

import ast
import re
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from tests.support.stand_in import ECHO
from tests.support.tls_front import Certificate, certificate_for
from tidegate.server.banner import curl_line
from tidegate.server.certificate import CertificateError, Entrance, read_pair
from tidegate.server.conditions import require_conditions
from tidegate.server.refusal import StartRefused
from tidegate.server.root_settings import as_the_root_has_it, differing, root_settings
from tidegate.settings import Settings
from tidegate.settings.groups import HttpSettings, ServerSettings
from tidegate.settings.rules import production_advice
from tidegate.telemetry.redaction import redact
from tidegate.tls import client_context, own_context, server_context

SOURCE = Path(__file__).resolve().parents[2] / "src" / "tidegate"
# The settings look whether a file holds what it should, and connect to nobody. Stores have a test of their own.
MAY_MAKE_CONTEXTS = {"tls.py", "settings/kinds.py", "storage/tls.py"}
MAKERS = {"create_default_context", "SSLContext", "create_ssl_context", "wrap_socket", "_create_unverified_context"}
# By what each is given a context. A transport has its own.
CLIENTS = {
    "Client": {"verify"},
    "AsyncClient": {"verify", "transport"},
    "UpstreamClient": {"verify", "transport"},
    "SMTP": {"tls_context"},
    "HTTPTransport": {"verify"},
    "AsyncHTTPTransport": {"verify"},
    "HTTPSConnection": {"context"},
    "urlopen": {"context"},
}
SHORT_CUTS = {"get", "post", "put", "patch", "delete", "head", "options", "request", "stream"}


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return certificate_for("gateway.example", tmp_path)


def faults_of(path: str, tree: ast.AST) -> Iterator[str]:
    """Where TLS would be spoken by what others have as their default."""
    bare = {"UpstreamClient"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in (
            "httpx2",
            "aiosmtplib",
            "http.client",
            "urllib.request",
        ):
            bare |= {alias.asname or alias.name for alias in node.names}
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
        given = {keyword.arg for keyword in node.keywords}
        if name in MAKERS and path not in MAY_MAKE_CONTEXTS:
            yield f"{path}:{node.lineno} makes a context: tidegate.tls has them"
        # Redis' are told by the URL.
        is_one = name in bare if not owner else owner in ("httpx2", "aiosmtplib", "http.client", "urllib.request")
        if is_one and name in CLIENTS and not given & CLIENTS[name]:
            yield f"{path}:{node.lineno} {name} makes a context of its own: give it one of tidegate.tls"
        if owner == "httpx2" and name in SHORT_CUTS:
            yield f"{path}:{node.lineno} httpx2.{name} makes a context of its own"
        asks_for_default = any(each.arg == "ssl" and ast.unparse(each.value) == "True" for each in node.keywords)
        if asks_for_default or (name == "UpstreamTransport" and "ssl_context" in given):
            yield f"{path}:{node.lineno} speaks TLS by another context"


def test_every_context_comes_from_one_place() -> None:
    modules = [(str(path.relative_to(SOURCE)), path.read_text("utf-8")) for path in sorted(SOURCE.rglob("*.py"))]
    assert [fault for path, text in modules for fault in faults_of(path, ast.parse(text))] == []


@pytest.mark.parametrize(
    "sample",
    [
        "ssl.create_default_context()",
        "ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)",
        "httpx2.create_ssl_context()",
        "httpx2.Client(trust_env=False)",
        "httpx2.AsyncClient(timeout=1)",
        "httpx2.get(url)",
        "from httpx2 import Client\nClient()",
        "aiosmtplib.SMTP(hostname=host)",
        "UpstreamClient(timeout=None)",
        "urllib.request.urlopen(url)",
        "asyncio.open_connection(host, 443, ssl=True)",
    ],
)
def test_a_context_from_elsewhere_is_found(sample: str) -> None:
    assert list(faults_of("elsewhere.py", ast.parse(sample)))


def test_none_speaks_less_than_1_2(certificate: Certificate) -> None:
    contexts = [client_context(), server_context(), own_context(None), own_context(certificate.path)]
    contexts += [Entrance(certificate.path, certificate.key_path).context]
    contexts += [read_pair(certificate.path, certificate.key_path).context]
    assert min(context.minimum_version for context in contexts) >= ssl.TLSVersion.TLSv1_2
    assert contexts[0].check_hostname
    assert {contexts[0].verify_mode, contexts[3].verify_mode} == {ssl.CERT_REQUIRED}


def test_who_calls_is_offered_nothing_weak() -> None:
    offered = server_context().get_ciphers()
    assert {cipher["protocol"] for cipher in offered} == {"TLSv1.2", "TLSv1.3"}
    assert all(cipher["aead"] for cipher in offered)
    assert {cipher["kea"] for cipher in offered} <= {"kx-ecdhe", "kx-any"}
    assert server_context().options & ssl.OP_NO_RENEGOTIATION


def test_of_a_chain_the_first_alone_is_this_server(certificate: Certificate, tmp_path: Path) -> None:
    other = certificate_for("authority.example", tmp_path)
    certificate.path.write_text(certificate.path.read_text() + other.path.read_text())
    subjects = [found["subject"] for found in own_context(certificate.path).get_ca_certs()]
    assert "gateway.example" in str(subjects)
    assert "authority.example" not in str(subjects)
    certificate.path.write_text("nothing")
    with pytest.raises(OSError, match="certificate"):
        own_context(certificate.path)


def _put_in_a_passphrase(pair: Certificate) -> None:
    key = serialization.load_pem_private_key(pair.key_path.read_bytes(), None)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    pair.key_path.write_bytes(key.private_bytes(*form, serialization.BestAvailableEncryption(b"a word")))


def _swap_keys(pair: Certificate) -> None:
    pair.key_path.write_bytes(certificate_for("other", pair.path.parent).key_path.read_bytes())


def _swap_for_another_kind(pair: Certificate) -> None:
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    pair.key_path.write_bytes(ed25519.Ed25519PrivateKey.generate().private_bytes(*form))


def _dated(since_days: float, until_days: float) -> Callable[[Certificate], object]:
    return lambda pair: certificate_for(
        "gateway.example", pair.path.parent, since_days=since_days, until_days=until_days
    )


@pytest.mark.parametrize(
    ("spoil", "variable", "told"),
    [
        (lambda pair: pair.path.unlink(), "CERTIFICATE", "cannot be read: No such file"),
        (lambda pair: pair.key_path.unlink(), "KEY", "cannot be read: No such file"),
        (lambda pair: pair.path.write_text("x"), "CERTIFICATE", "holds no certificate in PEM's form"),
        (lambda pair: pair.path.write_text(pair.key_path.read_text()), "CERTIFICATE", "holds no certificate"),
        (lambda pair: pair.key_path.write_text("x"), "KEY", "holds no private key in PEM's form"),
        (lambda pair: pair.key_path.write_text(pair.path.read_text()), "KEY", "holds no private key"),
        (_put_in_a_passphrase, "KEY", "the key has a passphrase"),
        (_swap_keys, "KEY", "is not that of the certificate in"),
        (_swap_for_another_kind, "KEY", "is not that of the certificate in"),
        (_dated(3, -1), "CERTIFICATE", "ended on"),
        (_dated(-1, 3), "CERTIFICATE", "is valid from"),
    ],
)
def test_a_bad_pair_is_refused_with_its_variable(
    spoil: Callable[[Certificate], object], variable: str, told: str, certificate: Certificate
) -> None:
    key = certificate.key_path.read_text()
    spoil(certificate)
    settings = _settings(certificate)
    with pytest.raises(StartRefused) as refused:
        require_conditions(settings)
    (fault,) = refused.value.faults
    assert fault.startswith(f"TIDEGATE_SERVER__TLS_{variable}: ")
    assert told in fault
    assert redact(fault) == fault
    assert not any(line in fault for line in key.splitlines()[1:-1])


def test_one_without_the_other_is_no_setting(certificate: Certificate) -> None:
    for name, path in (("tls_certificate", certificate.path), ("tls_key", certificate.key_path)):
        with pytest.raises(ValueError, match="given together"):
            ServerSettings.model_validate({name: path})


def test_a_bad_pair_leaves_the_one_that_is_shown(certificate: Certificate) -> None:
    entrance = Entrance(certificate.path, certificate.key_path)
    before = entrance.pair
    _swap_keys(certificate)
    with pytest.raises(CertificateError):
        entrance.read_waiting()
    assert entrance.pair is before


def test_who_keeps_up_has_the_last_good_pair(certificate: Certificate, tmp_path: Path) -> None:
    entrance = Entrance(certificate.path, certificate.key_path)
    first = entrance.pair
    entrance.keep_up()
    assert entrance.pair is first
    other = certificate_for("other", tmp_path)
    certificate.path.write_bytes(other.path.read_bytes())
    entrance.keep_up()
    assert entrance.pair is first
    certificate.key_path.write_bytes(other.key_path.read_bytes())
    entrance.keep_up()
    assert entrance.pair.names == ("other",)
    certificate.key_path.unlink()
    entrance.keep_up()
    assert entrance.pair.names == ("other",)


def test_what_a_port_speaks_is_the_roots_to_say(certificate: Certificate) -> None:
    with_it, without = _settings(certificate), Settings(environment="test")
    assert differing(with_it, root_settings(without)) == [
        "TIDEGATE_SERVER__TLS_CERTIFICATE",
        "TIDEGATE_SERVER__TLS_KEY",
    ]
    assert as_the_root_has_it(with_it, root_settings(without)).server.scheme == "http"
    server = as_the_root_has_it(without, root_settings(with_it)).server
    assert (server.tls_certificate, server.tls_key) == (certificate.path, certificate.key_path)


@pytest.mark.parametrize(
    ("server", "proxies", "variable"),
    [
        ({"host": "0.0.0.0"}, (), "TIDEGATE_SERVER__HOST"),
        ({"host": "127.0.0.1", "management_host": "10.0.0.7", "management_port": 9000}, (), "MANAGEMENT_HOST"),
        ({"host": "0.0.0.0"}, ("10.0.0.0/8",), None),
        ({"host": "::1"}, (), None),
        ({"host": "localhost", "management_port": 9000}, (), None),
        ({"host": "0.0.0.0", "tls_certificate": "c.pem", "tls_key": "k.pem"}, (), None),
    ],
)
def test_who_listens_beyond_this_machine_in_the_clear_is_told_both_ways(
    server: dict[str, object], proxies: tuple[str, ...], variable: str | None
) -> None:
    settings = Settings(
        environment="test", server=ServerSettings.model_validate(server), http=HttpSettings(trusted_proxies=proxies)
    )
    told = [line for line in production_advice(settings) if line.startswith("TIDEGATE_SERVER__")]
    assert len(told) == (variable is not None)
    if variable is not None:
        assert re.match(rf"TIDEGATE_SERVER__\w*{variable.removeprefix('TIDEGATE_SERVER__')}: ", told[0])
        for way in ("TIDEGATE_SERVER__TLS_CERTIFICATE", "TIDEGATE_SERVER__TLS_KEY", "TIDEGATE_HTTP__TRUSTED_PROXIES"):
            assert way in told[0]


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("127.0.0.1", "https://127.0.0.1:8000/v1"),
        ("localhost", "--connect-to ::127.0.0.1:8000 https://localhost:8000/v1"),
        ("gateway.example", "--connect-to ::127.0.0.1:8000 https://gateway.example:8000/v1"),
    ],
)
def test_the_printed_line_asks_by_a_name_of_the_certificate(name: str, asked: str, tmp_path: Path) -> None:
    made = certificate_for(name, tmp_path)
    line = curl_line("https://127.0.0.1:8000", tmp_path / "first-key", "m", read_pair(made.path, made.key_path))
    assert line.startswith(f"curl -N --cacert {made.path} {asked}")


def _settings(certificate: Certificate) -> Settings:
    server = ServerSettings(tls_certificate=certificate.path, tls_key=certificate.key_path)
    return Settings(environment="test", config_toml=ECHO, server=server)
