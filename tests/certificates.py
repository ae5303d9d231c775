"""Certificates for tests, made with the `openssl` command."""

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
OPTIONS = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=localhost"


def make_certificate(folder: Path, name: str = "tls") -> tuple[Path, Path]:
    """Return the files of a self-signed certificate for localhost and of its key."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    folder.mkdir(exist_ok=True)
    command = ["openssl", "req", "-x509", *OPTIONS.split(), "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    return certificate, key


def trusting(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=certificate)
