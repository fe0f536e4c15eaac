"""The keys file and its store, and the addresses that need keys."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import keys.store
from edge.config import EdgeConfig
from inference.config import ModelConfig, ServerConfig
from keys import (
    ConfigError,
    KeysFileError,
    KeyStore,
    create_key,
    is_loopback,
    read_entries,
    revoke_key,
)

MODEL = ModelConfig(id="m", engine="scripted")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def test_a_created_key_is_accepted_and_any_other_is_not(path: Path) -> None:
    entry, key = create_key(path, "alice")
    principal = KeyStore(path).check(key)
    assert principal is not None
    assert (principal.id, principal.name, principal.scopes) == (entry.id, "alice", ("api",))
    for wrong in ("", key[:-1], key + "x", key.upper(), entry.sha256, "\ud800", "é"):
        assert KeyStore(path).check(wrong) is None


def test_keys_are_long_and_random_and_the_file_holds_only_their_digest(path: Path) -> None:
    entry, key = create_key(path, "alice")
    _, other = create_key(path, "alice")
    assert key != other
    assert key.startswith("sk-isthmus-")
    assert len(key.removeprefix("sk-isthmus-")) >= 43  # 32 bytes in base64
    assert key not in path.read_text()
    assert entry.sha256 == hashlib.sha256(key.encode()).hexdigest()


def test_only_the_owner_may_read_the_file_and_no_temporary_file_remains(path: Path) -> None:
    create_key(path, "alice")
    create_key(path, "bob")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_keys_made_concurrently_are_all_kept(path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: create_key(path, str(number))[1], range(16)))
    store = KeyStore(path)
    assert all(store.check(key) for key in made)


def test_a_key_has_the_scope_it_was_made_with_and_an_unknown_scope_is_refused(path: Path) -> None:
    _, key = create_key(path, "edge", scope="edge")
    principal = KeyStore(path).check(key)
    assert principal is not None
    assert principal.scopes == ("edge",)
    with pytest.raises(KeysFileError, match="scope"):
        create_key(path, "x", scope="root")


def test_a_credential_given_as_digest_has_scope_edge_and_survives_a_reload(path: Path) -> None:
    create_key(path, "alice")
    token = "per-run"
    store = KeyStore(path, edge_token_sha256=hashlib.sha256(token.encode()).hexdigest())
    for _ in range(2):
        principal = store.check(token)
        assert principal is not None
        assert principal.scopes == ("edge",)
        assert store.reload()
    assert KeyStore(path).check(token) is None


def test_a_key_is_refused_from_its_expiry_on(path: Path) -> None:
    _, key = create_key(path, "alice", expires_at=1000)
    assert KeyStore(path, clock=lambda: 999.9).check(key)
    assert KeyStore(path, clock=lambda: 1000.0).check(key) is None


def test_a_revoked_key_is_refused_without_a_restart_and_others_stay_valid(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys.store, "_STAT_SECONDS", 0.0)
    entry, key = create_key(path, "alice")
    store = KeyStore(path)
    _, added = create_key(path, "bob")
    assert store.check(added)
    revoke_key(path, entry.id)
    assert store.check(key) is None
    assert store.check(added)
    with pytest.raises(KeysFileError, match=entry.id):
        revoke_key(path, entry.id)


@pytest.mark.parametrize(
    "broken",
    [
        "",
        "{",
        "[]",
        '{"keys": {}}',
        '{"keys": [{"id": "a", "sha256": "00", "scopes": ["api"]}]}',
        '{"keys": [{"id": "a", "sha256": "%s", "scopes": ["root"]}]}' % ("0" * 64),
        '{"keys": [{"id": "a", "sha256": "%s", "typo": 1}]}' % ("0" * 64),
        '{"keys": [{"id": "clé", "sha256": "%s"}]}' % ("0" * 64),
        '{"keys": [{"id": "", "sha256": "%s"}]}' % ("0" * 64),
        '{"keys": [{"id": "a", "sha256": "%s", "tokens_per_minute": 0}]}' % ("0" * 64),
        '{"keys": [{"id": "a", "sha256": "%s", "requests_per_minute": true}]}' % ("0" * 64),
        '{"keys": [{"id": "a", "sha256": "%s", "expires_at": "soon"}]}' % ("0" * 64),
    ],
)
def test_a_broken_file_is_refused_at_start_and_ignored_later(path: Path, broken: str) -> None:
    _, key = create_key(path, "alice")
    store = KeyStore(path)
    path.write_text(broken)
    assert not store.reload()
    assert store.check(key)
    with pytest.raises(KeysFileError):
        KeyStore(path)
    path.unlink()
    assert not store.reload()
    assert store.check(key)


def test_the_error_for_a_missing_file_shows_the_command_that_makes_a_key(path: Path) -> None:
    with pytest.raises(KeysFileError, match="isthmus keys create NAME"):
        KeyStore(path)


def test_a_check_compares_every_entry_in_constant_time(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [create_key(path, str(number))[1] for number in range(5)]
    store = KeyStore(path)
    compared: list[tuple[str, str]] = []

    def counting(a: str, b: str) -> bool:
        compared.append((a, b))
        return real(a, b)

    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", counting)
    for key in (*made, "unknown"):
        compared.clear()
        store.check(key)
        assert [a for a, _ in compared] == [entry.sha256 for entry in read_entries(path)]


def test_a_file_written_by_hand_needs_only_id_and_digest(path: Path) -> None:
    digest = hashlib.sha256(b"mine").hexdigest()
    path.write_text(json.dumps({"keys": [{"id": "k", "sha256": digest}]}))
    path.chmod(0o600)
    principal = KeyStore(path).check("mine")
    assert principal is not None
    assert principal.scopes == ("api",)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666, 0o660])
def test_a_file_that_others_can_write_is_refused_at_start_and_not_read_later(
    path: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Who can write it can add a key."""
    _, key = create_key(path, "alice")
    store = KeyStore(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=rf"^keys_file: {path} .*chmod 600 {path}"):
        KeyStore(path)
    create_key(path.with_name("other.json"), "mallory")
    path.write_text(path.with_name("other.json").read_text())
    assert not store.reload()
    assert store.check(key)
    assert "chmod 600" in caplog.text


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_file_that_others_can_read_is_a_warning_with_the_command(
    path: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    _, key = create_key(path, "alice")
    path.chmod(mode)
    assert KeyStore(path).check(key)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"chmod 600 {path}" in record.message


def test_a_file_that_only_its_owner_can_use_is_no_warning(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    create_key(path, "alice")
    KeyStore(path)
    path.chmod(0o400)
    KeyStore(path)
    assert not caplog.records


def test_a_secret_that_root_gives_to_a_container_is_no_warning(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Docker and Kubernetes mount secrets with mode 0444 or 0644, owned by root."""
    create_key(path, "alice")
    path.chmod(0o444)
    real = os.stat(path)
    owned_by_root = os.stat_result((*real[:4], 0, 0, *real[6:]))
    monkeypatch.setattr(keys.store.os, "stat", lambda *_args, **_kwargs: owned_by_root)
    monkeypatch.setattr(keys.store.os, "geteuid", lambda: 1000)
    KeyStore(path)
    assert not caplog.records


def test_a_file_of_another_user_is_a_warning(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_key(path, "alice")
    real = os.stat(path)
    foreign = os.stat_result((*real[:4], real.st_uid + 4321, real.st_gid, *real[6:]))
    monkeypatch.setattr(keys.store.os, "stat", lambda *_args, **_kwargs: foreign)
    monkeypatch.setattr(keys.store.os, "geteuid", lambda: real.st_uid)
    KeyStore(path)
    (record,) = caplog.records
    assert "another user" in record.message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", ""),
        ("id", 7),
        ("name", None),
        ("sha256", "00"),
        ("scopes", ["root"]),
        ("scopes", "api"),
        ("created_at", None),
        ("expires_at", "soon"),
        ("requests_per_minute", 0),
        ("tokens_per_minute", True),
    ],
)
def test_the_error_for_a_wrong_field_names_entry_and_field(
    path: Path, field: str, value: object
) -> None:
    entry = {"id": "a", "sha256": "0" * 64}
    path.write_text(json.dumps({"keys": [entry, {"id": "b", "sha256": "1" * 64, field: value}]}))
    with pytest.raises(KeysFileError, match=rf"keys\[1\]\.{field}: must be "):
        read_entries(path)


def test_the_error_for_an_unknown_field_does_not_repeat_its_name(path: Path) -> None:
    """Somebody may have pasted a key there."""
    key = "sk-isthmus-secret"
    path.write_text(json.dumps({"keys": [{"id": "a", "sha256": "0" * 64, key: 1}]}))
    with pytest.raises(KeysFileError, match=r"keys\[0\] must be an object") as caught:
        read_entries(path)
    assert key not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.1", False),
        ("localhost.example.org", False),
    ],
)
def test_both_configurations_need_keys_off_loopback_only(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
    listen = f"{host}:50051"
    if loopback:
        EdgeConfig(host=host)
        ServerConfig(listen=listen, models=(MODEL,))
        return
    with pytest.raises(ConfigError, match=r"^host: .* no keys are configured"):
        EdgeConfig(host=host)
    with pytest.raises(ConfigError, match=r"^listen: .* no keys are configured"):
        ServerConfig(listen=listen, models=(MODEL,))


def test_a_unix_socket_needs_no_keys() -> None:
    ServerConfig(listen="unix:/run/isthmus.sock", models=(MODEL,))
