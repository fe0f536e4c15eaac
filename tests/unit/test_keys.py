"""Keys: made once, checked in constant time, revoked without a restart."""

from __future__ import annotations

import hashlib
import hmac
import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import keys.store
from keys import KeysFileError, KeyStore, create_key, read_entries, revoke_key


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def test_a_created_key_is_known_and_no_other(path: Path) -> None:
    entry, key = create_key(path, "alice")
    principal = KeyStore(path).check(key)
    assert principal is not None
    assert (principal.id, principal.name, principal.scopes) == (entry.id, "alice", ("api",))
    for wrong in ("", key[:-1], key + "x", key.upper(), entry.sha256, "\ud800", "é"):
        assert KeyStore(path).check(wrong) is None


def test_keys_are_long_random_and_kept_as_digest_only(path: Path) -> None:
    entry, key = create_key(path, "alice")
    _, other = create_key(path, "alice")
    assert key != other
    assert key.startswith("sk-isthmus-")
    assert len(key.removeprefix("sk-isthmus-")) >= 43  # 32 bytes in base64
    assert key not in path.read_text()
    assert entry.sha256 == hashlib.sha256(key.encode()).hexdigest()


def test_file_is_for_its_owner_only_and_nothing_is_left_beside_it(path: Path) -> None:
    create_key(path, "alice")
    create_key(path, "bob")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_keys_made_at_once_are_all_kept(path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: create_key(path, str(number))[1], range(16)))
    store = KeyStore(path)
    assert all(store.check(key) for key in made)


def test_scope_edge(path: Path) -> None:
    _, key = create_key(path, "edge", scope="edge")
    principal = KeyStore(path).check(key)
    assert principal is not None
    assert principal.scopes == ("edge",)
    with pytest.raises(KeysFileError, match="scope"):
        create_key(path, "x", scope="root")


def test_credential_given_as_digest_has_scope_edge_and_survives_reload(path: Path) -> None:
    create_key(path, "alice")
    token = "per-run"
    store = KeyStore(path, edge_token_sha256=hashlib.sha256(token.encode()).hexdigest())
    for _ in range(2):
        principal = store.check(token)
        assert principal is not None
        assert principal.scopes == ("edge",)
        assert store.reload()
    assert KeyStore(path).check(token) is None


def test_expired_key_is_nobodys(path: Path) -> None:
    _, key = create_key(path, "alice", expires_at=1000)
    assert KeyStore(path, clock=lambda: 999.9).check(key)
    assert KeyStore(path, clock=lambda: 1000.0).check(key) is None


def test_revoked_key_is_refused_without_restart_and_others_stay(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys.store, "_LOOK_SECONDS", 0.0)
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
def test_broken_file_is_refused_at_start_and_ignored_later(path: Path, broken: str) -> None:
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


def test_missing_file_says_how_to_make_a_key(path: Path) -> None:
    with pytest.raises(KeysFileError, match="isthmus keys create NAME"):
        KeyStore(path)


def test_every_entry_is_compared_in_constant_time(
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
    for key in (*made, "nobody's"):
        compared.clear()
        store.check(key)
        assert [a for a, _ in compared] == [entry.sha256 for entry in read_entries(path)]


def test_file_written_by_hand_needs_only_id_and_digest(path: Path) -> None:
    digest = hashlib.sha256(b"mine").hexdigest()
    path.write_text(json.dumps({"keys": [{"id": "k", "sha256": digest}]}))
    principal = KeyStore(path).check("mine")
    assert principal is not None
    assert principal.scopes == ("api",)
