"""How this machine reaches package indexes: for the build's RUN steps, as secrets that never get into an image."""

from __future__ import annotations

import configparser
import os
import ssl
from collections.abc import Mapping
from pathlib import Path

CERTIFICATES = "certificates"
PIP_CONFIGURATION = "pip_configuration"
CERTIFICATES_INSIDE = f"/run/secrets/{CERTIFICATES}"

# What decides where packages come from. Everything else (caches, local folders) means nothing inside a build.
PIP_KEYS = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "retries")


def secrets(folder: Path, *, environment: Mapping[str, str], files: list[Path] | None = None) -> dict[str, Path]:
    """Write this machine's pip configuration to a folder.

    Args:
        folder: an existing folder that outlives the build.
        environment: this process's variables; ``PIP_*`` win over files.
        files: pip's configuration files, the later ones win; by default those that pip reads.

    Returns:
        The secrets of a build by their id: the CA bundle and pip's configuration.
    """
    bundle = ca_bundle(environment)
    settings = pip_settings(environment, pip_files(environment) if files is None else files)
    if bundle:
        settings["cert"] = CERTIFICATES_INSIDE
    configuration = configparser.RawConfigParser()
    configuration["global"] = settings
    target = folder / "pip.conf"
    with target.open("w") as file:
        configuration.write(file)
    return {PIP_CONFIGURATION: target} | ({CERTIFICATES: bundle} if bundle else {})


def pip_settings(environment: Mapping[str, str], files: list[Path]) -> dict[str, str]:
    """The settings of pip that say where packages come from."""
    settings: dict[str, str] = {}
    for path in files:
        parser = configparser.RawConfigParser()
        parser.read(path)
        for section in ("global", "install"):
            if parser.has_section(section):
                settings.update({key: value for key, value in parser.items(section) if key in PIP_KEYS})
    for key in PIP_KEYS:
        name = f"PIP_{key.upper().replace('-', '_')}"
        if environment.get(name):
            settings[key] = environment[name]
    return settings


def pip_files(environment: Mapping[str, str]) -> list[Path]:
    """The configuration files that pip reads on Linux, in its order."""
    home = Path(environment.get("HOME", "/"))
    configured = environment.get("XDG_CONFIG_HOME")
    candidates = [
        Path("/etc/pip.conf"),
        home / ".pip" / "pip.conf",
        (Path(configured) if configured else home / ".config") / "pip" / "pip.conf",
    ]
    if environment.get("PIP_CONFIG_FILE"):
        candidates.append(Path(environment["PIP_CONFIG_FILE"]))
    return [path for path in candidates if path.is_file()]


def ca_bundle(environment: Mapping[str, str]) -> Path | None:
    """The file of certificate authorities that this machine trusts; it may hold a company's own."""
    candidates = [environment.get("PIP_CERT"), environment.get("SSL_CERT_FILE"), ssl.get_default_verify_paths().cafile]
    candidates.append("/etc/ssl/certs/ca-certificates.crt")
    return next((Path(path) for path in candidates if path and Path(path).is_file()), None)


def current() -> Mapping[str, str]:
    """The variables of this process."""
    return os.environ
