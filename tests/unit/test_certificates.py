"""CertificateFiles: what is refused at the start, and what happens when the files change."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import keys.certificates
from edge.config import EdgeConfig
from keys import CertificateFiles, ConfigError
from tests.certificates import Authority, Pair


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def pair(authority: Authority) -> Pair:
    return authority.pair("localhost")


@pytest.fixture(autouse=True)
def _look_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys.certificates, "_STAT_SECONDS", 0.0)


def files(pair: Pair, client_ca: Path | None = None) -> CertificateFiles:
    return CertificateFiles(pair.certificate, pair.key, client_ca)


def remove(path: Path) -> None:
    path.unlink()


def break_file(path: Path) -> None:
    path.write_text("no PEM")


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def damage(path: Path) -> None:
    first, second, *rest = path.read_text().splitlines()
    path.write_text("\n".join([first, second[::-1], *rest]))


@pytest.mark.parametrize("harm", [remove, break_file, make_folder, damage])
@pytest.mark.parametrize("name", ["tls_certificate", "tls_key", "tls_client_ca"])
def test_a_file_that_cannot_be_used_is_refused_by_setting_and_path(
    authority: Authority, pair: Pair, name: str, harm: Callable[[Path], None]
) -> None:
    parts = {
        "tls_certificate": pair.certificate,
        "tls_key": pair.key,
        "tls_client_ca": authority.path,
    }
    files(pair, authority.path)
    harm(parts[name])
    with pytest.raises(ConfigError, match=rf"^{name}: ") as refused:
        files(pair, authority.path)
    assert str(parts[name]) in str(refused.value)


def test_the_key_of_another_certificate_is_refused(authority: Authority, pair: Pair) -> None:
    other = authority.pair("other")
    with pytest.raises(ConfigError, match=r"tls_key: .* is not the key of the certificate"):
        files(Pair(pair.certificate, other.key))


def test_a_key_with_a_password_is_refused_without_asking_for_it(pair: Pair) -> None:
    from cryptography.hazmat.primitives import serialization as s

    key = s.load_pem_private_key(pair.key.read_bytes(), None)
    encryption = s.BestAvailableEncryption(b"secret")
    pair.key.write_bytes(
        key.private_bytes(s.Encoding.PEM, s.PrivateFormat.TraditionalOpenSSL, encryption)
    )
    with pytest.raises(ConfigError, match=r"tls_key: .* protected with a password"):
        files(pair)


def test_a_new_pair_is_used_and_an_unchanged_one_is_not_read_again(
    authority: Authority, pair: Pair
) -> None:
    used = files(pair)
    first = used.current()
    assert used.current() is first
    pair.replace_by(authority.pair("renewed"))
    second = used.current()
    assert second.certificate == pair.certificate.read_bytes() != first.certificate
    assert second.key == pair.key.read_bytes()
    assert used.current() is second


def test_a_broken_new_pair_keeps_the_old_one_and_is_logged_once(
    authority: Authority, pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    used = files(pair)
    first = used.current()
    renewed = authority.pair("renewed")
    pair.certificate.write_bytes(renewed.certificate.read_bytes())
    for _ in range(3):
        assert used.current() is first
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "stays in use" in record.message
    pair.key.write_bytes(renewed.key.read_bytes())
    assert used.current().certificate == renewed.certificate.read_bytes()
    assert "certificate reloaded" in caplog.text


def test_a_replaced_link_counts_as_a_change(
    authority: Authority, pair: Pair, tmp_path: Path
) -> None:
    """certbot and Kubernetes renew by changing a symbolic link."""
    links = Pair(tmp_path / "link.pem", tmp_path / "link.key")
    renewed = authority.pair("renewed")
    for target in (pair, renewed):
        for link, file in ((links.certificate, target.certificate), (links.key, target.key)):
            os.symlink(file, tmp_path / "new")
            os.replace(tmp_path / "new", link)
        if target is pair:
            used = files(links)
    assert used.current().certificate == renewed.certificate.read_bytes()


def test_certificate_and_key_of_the_edge_come_together() -> None:
    for parts in ({"tls_certificate": Path("a")}, {"tls_key": Path("a")}):
        with pytest.raises(ConfigError, match="tls_certificate and tls_key: both or neither"):
            EdgeConfig(**parts)
