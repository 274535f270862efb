"""Keyrings: from the settings, else generated once and kept; never shown."""

import json
import multiprocessing
import stat
from pathlib import Path

import pytest
from pydantic import SecretStr

from tidegate.auth.keyring import SECRETS_FILE, Keyring, Keyrings, write_private_file
from tidegate.settings import Settings, SettingsError
from tidegate.settings.groups import AuthSettings

FIRST = "first-secret-0123456789abcdefghijklmnop"
SECOND = "second-secret-0123456789abcdefghijklmno"


def _settings(data_dir: Path, **auth: tuple[tuple[str, SecretStr], ...]) -> Settings:
    return Settings(environment="test", data_dir=data_dir, auth=AuthSettings(**auth))


def test_the_first_secret_of_the_settings_signs_and_all_verify(tmp_path: Path) -> None:
    pairs = (("2", SecretStr(FIRST)), ("1", SecretStr(SECOND)))
    keyrings = Keyrings.load(_settings(tmp_path, jwt_keys=pairs, api_key_peppers=pairs))
    assert (keyrings.jwt.current_kid, keyrings.jwt.current) == ("2", FIRST.encode())
    assert keyrings.peppers.get("1") == SECOND.encode()
    assert keyrings.peppers.get("3") is None
    assert not (tmp_path / SECRETS_FILE).exists()


def test_what_the_settings_leave_out_is_generated_once_and_used_again(tmp_path: Path) -> None:
    one = Keyrings.load(_settings(tmp_path / "new"))
    other = Keyrings.load(_settings(tmp_path / "new"))
    assert one.jwt.current == other.jwt.current
    assert one.peppers.current == other.peppers.current
    assert one.jwt.current != one.peppers.current
    assert len(one.jwt.current) >= 32


def test_a_configured_ring_stands_beside_a_generated_one(tmp_path: Path) -> None:
    keyrings = Keyrings.load(_settings(tmp_path, jwt_keys=(("1", SecretStr(FIRST)),)))
    assert keyrings.jwt.current == FIRST.encode()
    assert keyrings.peppers.current_kid == "generated"


def test_what_was_generated_before_the_settings_named_any_still_verifies(tmp_path: Path) -> None:
    generated = Keyrings.load(_settings(tmp_path))
    pairs = (("1", SecretStr(FIRST)), ("generated", SecretStr(SECOND)))
    keyrings = Keyrings.load(_settings(tmp_path, jwt_keys=pairs[:1], api_key_peppers=pairs))
    assert (keyrings.jwt.current_kid, keyrings.jwt.get("generated")) == ("1", generated.jwt.current)
    # A kid is the settings' where both have it.
    assert keyrings.peppers.get("generated") == SECOND.encode()


def test_what_was_generated_opens_nothing_in_production(tmp_path: Path) -> None:
    Keyrings.load(_settings(tmp_path))
    auth = AuthSettings(jwt_keys=(("1", SecretStr(FIRST)),), api_key_peppers=(("1", SecretStr(SECOND)),))
    keyrings = Keyrings.load(Settings(environment="production", data_dir=tmp_path, auth=auth))
    assert [kid for kid, _ in keyrings.jwt.items()] == ["1"]


def test_generated_secrets_are_readable_by_their_owner_alone(tmp_path: Path) -> None:
    Keyrings.load(_settings(tmp_path))
    assert stat.S_IMODE((tmp_path / SECRETS_FILE).stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [SECRETS_FILE]


def test_production_generates_nothing(tmp_path: Path) -> None:
    settings = Settings(environment="production", data_dir=tmp_path)
    with pytest.raises(SettingsError) as refused:
        Keyrings.load(settings)
    assert [fault.partition(":")[0] for fault in refused.value.faults] == [
        "TIDEGATE_AUTH__JWT_KEYS",
        "TIDEGATE_AUTH__API_KEY_PEPPERS",
    ]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"jwt_keys": {"1": "short"}, "api_key_peppers": {"1": "short"}}', '{"jwt_keys": {}}'],
)
def test_a_damaged_file_is_refused_and_kept(tmp_path: Path, text: str) -> None:
    (tmp_path / SECRETS_FILE).write_text(text)
    with pytest.raises(SettingsError, match=r"secrets\.json is damaged"):
        Keyrings.load(_settings(tmp_path))
    assert (tmp_path / SECRETS_FILE).read_text() == text


def test_a_data_dir_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SettingsError, match=r"TIDEGATE_DATA_DIR: .*file"):
        Keyrings.load(_settings(tmp_path / "file"))


def _load_and_report(data_dir: Path, results: "multiprocessing.Queue[str]", barrier: object) -> None:
    barrier.wait(30)  # type: ignore[attr-defined]
    results.put(Keyrings.load(_settings(data_dir)).peppers.current.decode())


def test_processes_that_start_at_once_agree_on_the_secrets(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[str] = context.Queue()
    barrier = context.Barrier(4)
    processes = [context.Process(target=_load_and_report, args=(tmp_path, results, barrier)) for _ in range(4)]
    for process in processes:
        process.start()
    found = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join(30)
    kept = json.loads((tmp_path / SECRETS_FILE).read_text())["api_key_peppers"]["generated"]
    assert found == {kept}


def test_the_first_to_write_a_private_file_wins(tmp_path: Path) -> None:
    assert write_private_file(tmp_path / "a", "first", replace=False)
    assert not write_private_file(tmp_path / "a", "second", replace=False)
    assert (tmp_path / "a").read_text() == "first"
    assert write_private_file(tmp_path / "a", "third", replace=True)
    assert (tmp_path / "a").read_text() == "third"


def test_no_secret_is_in_a_repr(tmp_path: Path) -> None:
    pairs = (("2", SecretStr(FIRST)), ("1", SecretStr(SECOND)))
    keyrings = Keyrings.load(_settings(tmp_path, jwt_keys=pairs, api_key_peppers=pairs))
    for text in (repr(keyrings), str(keyrings), f"{keyrings.jwt!r}"):
        assert FIRST not in text
        assert SECOND not in text
    assert "'2'" in repr(keyrings)


def test_an_empty_keyring_is_none() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Keyring({})
