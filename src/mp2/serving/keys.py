"""API keys by file: who may ask, how often, and whether to tune; only hashes of the secrets are stored.

A key is ``mp2-<name>-<secret>``; the secret has 256 random bits, so one salted SHA-256 is enough (slow
hashes protect guessable passwords, which these are not). The file is read again when it changes, so a key
can be revoked without a restart.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from mp2.errors import ConfigError
from mp2.runtime import write_whole

NAME = re.compile(r"[a-z0-9_]{1,32}")


@dataclass(frozen=True, slots=True)
class Key:
    """One line of the key file.

    Attributes:
        name: Who it is, in logs and metrics.
        salt: Salt of the hash, hexadecimal.
        hash: SHA-256 of salt and secret, hexadecimal.
        per_minute: Requests per minute; as many may come at once.
        tune: Whether it may tune and delete tasks.
    """

    name: str
    salt: str
    hash: str
    per_minute: int = 600
    tune: bool = True

    def __post_init__(self) -> None:
        if not NAME.fullmatch(str(self.name)):
            raise ConfigError(f"key name: expected {NAME.pattern}, got {self.name!r}")
        if not all(re.fullmatch(r"([0-9a-f]{2})+", str(value)) for value in (self.salt, self.hash)):
            raise ConfigError(f"key {self.name!r}: salt and hash: expected hexadecimal digits")
        if isinstance(self.per_minute, bool) or not isinstance(self.per_minute, int) or self.per_minute < 1:
            raise ConfigError(f"key {self.name!r}: per_minute: expected at least 1, got {self.per_minute!r}")
        if not isinstance(self.tune, bool):
            raise ConfigError(f"key {self.name!r}: tune: expected true or false, got {self.tune!r}")


class Keys:
    """The keys of a file, and how much each has been used.

    Args:
        path: JSON file made by :func:`add_key`.

    Raises:
        ConfigError: The file is absent or no key file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read: tuple[int, dict[str, Key]] = (-1, {})
        self._left: dict[str, tuple[float, float]] = {}  # name -> requests left, when counted
        self._keys()

    def check(self, token: str) -> Key | None:
        """The key that a token is, or None; takes the same time for a wrong name as for a wrong secret."""
        prefix, _, rest = token.partition("-")
        name, _, secret = rest.partition("-")
        key = self._keys().get(name)
        salt, expected = (key.salt, key.hash) if key else ("00", "00" * 32)
        right = hmac.compare_digest(_hash(salt, secret), expected)
        return key if right and prefix == "mp2" else None

    def wait(self, key: Key) -> float:
        """Count a request; 0 when it may go on, else seconds until the next one may."""
        now = time.monotonic()
        left, counted = self._left.get(key.name, (float(key.per_minute), now))
        left = min(float(key.per_minute), left + (now - counted) * key.per_minute / 60)
        allowed = left >= 1
        self._left[key.name] = (left - 1 if allowed else left, now)
        return 0.0 if allowed else (1 - left) * 60 / key.per_minute

    def _keys(self) -> dict[str, Key]:
        try:
            changed = self.path.stat().st_mtime_ns
        except OSError as error:
            raise ConfigError(f"{self.path}: the key file cannot be read: {error.strerror}") from None
        if changed != self._read[0]:
            self._read = (changed, read_keys(self.path))
        return self._read[1]


def read_keys(path: Path) -> dict[str, Key]:
    """Keys of a file by name.

    Raises:
        ConfigError: The file is no key file.
    """
    try:
        keys = [Key(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: not a key file: {error}; make one with 'mp2 key'") from error
    return {key.name: key for key in keys}


def add_key(path: Path, name: str, *, per_minute: int = 600, tune: bool = True) -> str:
    """Make a key, or replace the one of that name, and return it; it can be read nowhere afterwards.

    Raises:
        ConfigError: The name or the limit is not valid, or the file is no key file.
    """
    secret, salt = secrets.token_urlsafe(32), secrets.token_hex(16)
    key = Key(name, salt, _hash(salt, secret), per_minute, tune)
    keys = read_keys(path) if path.exists() else {}
    write_whole(path, json.dumps([asdict(item) for item in {**keys, name: key}.values()], indent=1) + "\n")
    path.chmod(0o600)
    return f"mp2-{name}-{secret}"


def _hash(salt: str, secret: str) -> str:
    return hashlib.sha256(bytes.fromhex(salt) + secret.encode("utf-8", "replace")).hexdigest()
