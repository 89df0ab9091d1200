"""The site as a program: workers, TLS, what it refuses to start on, how it ends."""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from sqlalchemy import update

from collect.crowd.config import load_config
from collect.crowd.database import Database
from collect.crowd.init import write_site
from collect.crowd.migrate import migrate
from collect.crowd.tables import ConsentText
from robot_stack.cli import main

pytestmark = pytest.mark.slow
LIMIT_S = 60.0


@pytest.fixture
def serve(tmp_path):
    """Start `robot-stack crowd serve`; the process and what it said of itself."""
    started = []

    def start(config: Path, *options: str):
        command = [sys.executable, "-m", "robot_stack.cli", "crowd", "serve", "--json"]
        log = (tmp_path / "log").open("w")
        process = subprocess.Popen(
            [*command, "--config", str(config), *options],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (tmp_path / "log").read_text()
        return process, json.loads(line)

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait(LIMIT_S)


def until(condition, what):
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def answers(url, **options):
    try:
        return httpx.get(f"{url}/health", timeout=5, **options).status_code == 200
    except httpx.TransportError:
        return False


def children(pid):
    """Processes whose parent is ``pid``, but multiprocessing's resource tracker."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            command = (entry / "cmdline").read_text()
        except OSError:
            continue
        if parent == pid and "resource_tracker" not in command:
            found.append(int(entry.name))
    return found


def gone(pid):
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_several_workers_serve_one_site_and_end_with_it(serve, tmp_path, database_url):
    config = tmp_path / "site.yaml"
    write_site(config, origin=None)
    settings = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump({**settings, "database": database_url}))
    process, told = serve(config, "--workers", "2", "--bind", "127.0.0.1:0")
    url = told["url"]
    until(lambda: answers(url), "the site answers")
    until(lambda: len(children(process.pid)) == 2, "two workers")
    workers = children(process.pid)
    assert httpx.get(f"{url}/nope").status_code == 404
    counted = httpx.get(f"{url}/metrics").text
    assert 'route="none",status="404"} 1.0' in counted
    # One is killed: the other goes on, and a new one comes.
    os.kill(workers[0], signal.SIGKILL)
    until(lambda: len(set(children(process.pid)) - {workers[0]}) == 2, "a new worker")
    until(lambda: answers(url), "the site goes on")
    # The one that watches them is killed: nobody stays behind.
    workers = children(process.pid)
    process.kill()
    process.wait(LIMIT_S)
    until(lambda: all(gone(worker) for worker in workers), "no worker stays")


def test_https_by_its_own_certificate(serve, tmp_path):
    certificate, key = make_certificate(tmp_path)
    config = tmp_path / "site.yaml"
    write_site(config, origin="https://localhost:8430")
    settings = yaml.safe_load(config.read_text())
    tls = {"certificate": str(certificate), "key": str(key)}
    database = Database(load_config(config).database)
    migrate(database)
    with database.begin() as tx:  # as an upgrade does that brings another text
        tx.execute(update(ConsentText).values(body="Before.", shipped=None))
    database.close()
    process, told = serve(_changed(config, settings, tls=tls), "--bind", "127.0.0.1:0")
    address = told["bind"]
    context = ssl.create_default_context(cafile=certificate)
    headers = {"host": "localhost:8430"}
    until(lambda: answers(f"https://{address}", verify=context, headers=headers), "it answers")
    page = httpx.get(f"https://{address}/nope", verify=context, headers=headers)
    assert page.headers["set-cookie"].startswith("__Host-visit=")
    assert page.headers["strict-transport-security"].startswith("max-age=31536000")
    assert "show --shipped" in (tmp_path / "log").read_text()
    process.send_signal(signal.SIGTERM)
    assert process.wait(LIMIT_S) in (0, -signal.SIGTERM)


def test_it_refuses_to_start_on_what_is_unsafe(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    certificate, key = make_certificate(tmp_path)
    config = tmp_path / "site.yaml"
    write_site(config, origin="https://localhost:8430")
    settings = yaml.safe_load(config.read_text())
    tls = {"certificate": str(certificate), "key": str(key)}

    def refusal(**changes):
        assert main(["crowd", "serve", "--config", str(_changed(config, settings, **changes))]) == 1
        return capsys.readouterr().err

    key.chmod(0o644)
    assert f"chmod o= {key}" in refusal(tls=tls)
    key.chmod(0o600)
    certificate.chmod(0o600)
    assert "no certificate with its key" in refusal(
        tls={"certificate": str(key), "key": str(certificate)}
    )
    assert "cannot read" in refusal(tls={"certificate": "nothing.pem", "key": str(key)})
    (tmp_path / "site.key").chmod(0o640)
    assert "chmod 600" in refusal(tls=tls)
    (tmp_path / "site.key").unlink()
    assert "init --key-only" in refusal(tls=tls)
    assert "development: true" in refusal(origin="http://localhost:8430", tls=None)
    assert main(["crowd", "serve", "--config", str(config), "--workers", "0"]) == 1


def _changed(path: Path, settings: dict[str, object], **changes: object) -> Path:
    kept = {name: value for name, value in {**settings, **changes}.items() if value is not None}
    path.write_text(yaml.safe_dump(kept))
    return path


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate of localhost and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = folder / "tls.pem", folder / "tls.key"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].touch(0o600)
    files[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return files
