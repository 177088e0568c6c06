"""The certificate of an HTTPS server, tried before a model is loaded for it."""

from __future__ import annotations

import ssl
from pathlib import Path

from pellucid.config import AccessSettings
from pellucid.errors import ConfigError


def check_certificate(settings: AccessSettings) -> None:
    """Raises ConfigError if certificate and key cannot be read or do not belong together."""
    certificate, key = settings.ssl_certfile, settings.ssl_keyfile
    if certificate is None:
        if key is not None:
            raise ConfigError("ssl_keyfile needs ssl_certfile", param="ssl_keyfile")
        return
    for name, path in (("ssl_certfile", certificate), ("ssl_keyfile", key)):
        try:
            if path is not None:
                Path(path).read_bytes()
        except OSError as error:
            raise ConfigError(f"{name}: cannot read {path}: {error.strerror}", param=name) from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # A key with a password would be asked for on the terminal.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except ssl.SSLError as error:
        reason = error.reason or "not a PEM file with a certificate and a key without password"
        raise ConfigError(
            f"ssl_certfile: cannot use {certificate}: {reason}", param="ssl_certfile"
        ) from None
