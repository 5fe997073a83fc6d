"""Certificates that sign themselves, made by openssl."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Certificate:
    """A certificate, which is its own authority, and its key; both as PEM files."""

    certificate: Path
    key: Path


def self_signed(folder: Path, name: str = "tls") -> Certificate:
    """A certificate for the loopback addresses, valid for two days."""
    made = Certificate(folder / f"{name}.crt", folder / f"{name}.key")
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    names = ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1,IP:::1,DNS:localhost"]
    files = ["-keyout", str(made.key), "-out", str(made.certificate)]
    subprocess.run(["openssl", "req", "-x509", *kind, *names, *files], check=True, capture_output=True)
    return made


def signed(folder: Path, *, host: str = "localhost") -> tuple[Path, Certificate]:
    """An authority's certificate, and one that it has signed for a host and 127.0.0.1; valid for two days."""
    authority = self_signed(folder, "authority")
    made = Certificate(folder / "signed.crt", folder / "signed.key")
    request, names = folder / "signed.csr", folder / "signed.ext"
    names.write_text(f"subjectAltName=IP:127.0.0.1,DNS:{host}\n")
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={host}"]
    files = ["-keyout", str(made.key), "-out", str(request)]
    subprocess.run(["openssl", "req", *kind, *files], check=True, capture_output=True)
    by = ["-CA", str(authority.certificate), "-CAkey", str(authority.key), "-CAcreateserial"]
    asked = ["-in", str(request), "-days", "2", "-extfile", str(names), "-out", str(made.certificate)]
    subprocess.run(["openssl", "x509", "-req", *by, *asked], check=True, capture_output=True)
    return authority.certificate, made
