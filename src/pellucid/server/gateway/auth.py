"""API keys: where they come from, and whose a request brings."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
from collections.abc import Iterable
from pathlib import Path

from pellucid.config import AccessSettings
from pellucid.errors import ConfigError, Unauthorized

logger = logging.getLogger(__name__)

RELOAD_SECONDS = 1.0  # how often the key file is looked at
MIN_KEY_CHARS = 8
_NAMED = re.compile(r"([A-Za-z0-9_.-]{1,64}):(.*)")
_KEY = re.compile(r"[\x21-\x7e]+")

Keys = dict[bytes, str]  # SHA-256 of a key -> its name


class KeyRing:
    """The keys that open the server. Holds hashes of them alone.

    The file is read again when it changes. A file that cannot be read or understood leaves the keys
    as they were, with an error in the log; one that holds no key any more locks everybody out.
    """

    def __init__(self, settings: AccessSettings) -> None:
        """Raises ConfigError: a key is malformed or given twice, or the file cannot be read."""
        given = [entry for text in settings.api_key for entry in text.split(",")]
        self._given = parse_keys(given, "api_key")
        self._file = Path(settings.api_key_file) if settings.api_key_file else None
        self._version = self._file_version()
        self._looked = time.monotonic()
        self._keys = self._given | self._read_file()
        if self._file is not None and not self._keys:
            raise ConfigError("api_key_file holds no key", param="api_key_file")

    @property
    def is_open(self) -> bool:
        """No key is asked for."""
        return not self._keys and self._file is None

    def name_of(self, presented: bytes | None) -> str:
        """Whose key it is. Raises Unauthorized; the message does not repeat the key."""
        self._reload()
        if not presented:
            raise Unauthorized(
                "An API key is required: send it as 'Authorization: Bearer KEY'.",
                code="missing_api_key",
            )
        digest = hashlib.sha256(presented).digest()
        found = None
        for known, name in self._keys.items():  # all of them: the time tells nothing
            if hmac.compare_digest(known, digest):
                found = name
        if found is None:
            raise Unauthorized("The API key is not known.", code="invalid_api_key")
        return found

    def _reload(self) -> None:
        now = time.monotonic()
        if self._file is None or now - self._looked < RELOAD_SECONDS:
            return
        self._looked = now
        version = self._file_version()
        if version == self._version:
            return
        self._version = version
        try:
            self._keys = self._given | self._read_file()
            logger.info("read %s again: %d keys", self._file, len(self._keys))
        except ConfigError as error:
            logger.error("the API keys stay as they were: %s", error.message)

    def _read_file(self) -> Keys:
        if self._file is None:
            return {}
        try:
            lines = self._file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            raise ConfigError(
                f"api_key_file: cannot read {self._file}: {reason}", param="api_key_file"
            ) from None
        entries = (line.strip() for line in lines)
        return parse_keys((e for e in entries if e and not e.startswith("#")), "api_key_file")

    def _file_version(self) -> tuple[int, int, int] | None:
        if self._file is None:
            return None
        try:
            status = self._file.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino


def parse_keys(entries: Iterable[str], setting: str) -> Keys:
    """`NAME:KEY` or `KEY` each; several keys may bear one name, as while they are exchanged.

    A key without a name is called after its hash: its place in a list would change whose it is.
    Raises ConfigError, which counts the entries and does not repeat them.
    """
    keys: Keys = {}
    for number, entry in enumerate(entries, start=1):
        named = _NAMED.fullmatch(entry)
        key = named[2] if named else entry
        if not _KEY.fullmatch(key) or len(key) < MIN_KEY_CHARS:
            raise ConfigError(
                f"{setting}: key {number} must be at least {MIN_KEY_CHARS} printable ASCII "
                "characters without spaces",
                param=setting,
            )
        digest = hashlib.sha256(key.encode("ascii")).digest()
        name = named[1] if named else f"key-{digest.hex()[:8]}"
        if keys.setdefault(digest, name) != name:
            raise ConfigError(f"{setting}: key {number} is given twice", param=setting)
    return keys


def presented_key(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The key of a request's raw headers: OpenAI's `Authorization: Bearer`, or `x-api-key`."""
    bare = None
    for name, value in headers:
        if name == b"authorization":
            scheme, _, key = value.partition(b" ")
            if scheme.lower() == b"bearer":
                return key.strip()
        elif name == b"x-api-key":
            bare = value.strip()
    return bare
