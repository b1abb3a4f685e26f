"""Who may enter: TLS, mutual TLS, a shared token; without any of them this machine alone."""

from __future__ import annotations

import hmac
import ipaddress
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from thinwire.errors import ConfigError
from thinwire.hub.refused import Refused, Why


@dataclass(frozen=True)
class Entry:
    """How a hub knows its callers.

    Args:
        certificate: of the hub (PEM), for TLS.
        key: of that certificate.
        clients: the authority (PEM) whose certificates callers must show, for mutual TLS.
        names: of those certificates, which may enter; empty for all that the authority signed.
        token: a secret that callers must know.
    """

    certificate: Path | None = None
    key: Path | None = None
    clients: Path | None = None
    names: tuple[str, ...] = ()
    token: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ConfigError("TLS needs a certificate and its key; one of them is missing")
        if self.clients is not None and self.certificate is None:
            raise ConfigError("mutual TLS needs a certificate of the hub's own as well")
        if self.names and self.clients is None:
            raise ConfigError("names of certificates need the authority that signed them")
        if self.token is not None and len(self.token) < 8:
            raise ConfigError("the token is shorter than 8 characters; take a longer one")
        check_token(self.token)

    @property
    def open(self) -> bool:
        """Whether anybody who reaches the port may enter."""
        return self.token is None and self.clients is None

    def check_address(self, listen: str) -> str | None:
        """Returns what must be said of that address, or None.

        Raises:
            ConfigError: it is reachable from elsewhere and anybody could enter.
        """
        if is_loopback(host_of(listen)):
            return "only this machine can reach it" if self.open else None
        if self.open and self.certificate is None:
            raise ConfigError(
                f"a hub on {listen} could be entered by anybody; give it TLS (--tls-cert and "
                "--tls-key), mutual TLS (--client-ca) or a token (--token-file), or listen on "
                "127.0.0.1"
            )
        if self.certificate is None:
            return "the token and the model travel in clear: use TLS outside a private network"
        return "anybody who trusts its certificate may enter" if self.open else None

    def credentials(self) -> grpc.ServerCredentials | None:
        """Returns what the port is secured with, or None for no TLS."""
        if self.certificate is None or self.key is None:
            return None
        pair = (read(self.key), read(self.certificate))
        authority = None if self.clients is None else read(self.clients)
        return grpc.ssl_server_credentials([pair], authority, authority is not None)

    def check_files(self) -> None:
        """Says which of the files is at fault, where a port could not be secured with them.

        Raises:
            ConfigError: the certificate, its key or the authority is not what it should be.
        """
        if self.certificate is None:
            return
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # Without a password a key that needs one would be asked for on the terminal.
            context.load_cert_chain(self.certificate, self.key, password="")
        except OSError as error:
            raise ConfigError(
                f"{self.certificate} and {self.key} are no certificate and its key, in PEM and "
                f"without a password: {error}"
            ) from error
        if self.clients is not None:
            try:
                context.load_verify_locations(self.clients)
            except OSError as error:
                raise ConfigError(
                    f"{self.clients} holds no authority's certificate in PEM: {error}"
                ) from error

    def admit(
        self, metadata: Sequence[tuple[str, str | bytes]], auth: Mapping[str, Sequence[bytes]]
    ) -> None:
        """Lets a caller in.

        Args:
            metadata: what it said of itself.
            auth: what TLS found of it.

        Raises:
            Refused: it does not know the token, or its certificate is another's.
        """
        if self.names:
            parts = ("x509_common_name", "x509_subject_alternative_name")
            own = {n.decode(errors="replace") for part in parts for n in auth.get(part, ())}
            if not own & set(self.names):
                whose = ", ".join(sorted(own)) or "nobody"
                raise Refused(Why.CERTIFICATE, f"the certificate is of {whose}, who may not enter")
        if self.token is None:
            return
        said = dict(metadata).get("authorization", "")
        said = said.decode(errors="replace") if isinstance(said, bytes) else said
        if not hmac.compare_digest(said.encode(), f"Bearer {self.token}".encode()):
            raise Refused(
                Why.TOKEN,
                "the token is missing or wrong; give the hub's own with token=",
            )


def host_of(address: str) -> str:
    """Returns the host of a "host:port".

    Example:
        >>> host_of("10.0.0.1:7777"), host_of("[::1]:7777")
        ('10.0.0.1', '::1')
    """
    return address.rpartition(":")[0].strip("[]")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that host name or address.

    Example:
        >>> [is_loopback(h) for h in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "", "a.org")]
        [True, True, True, False, False, False]
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_token(token: str | None) -> None:
    """Raises a ConfigError if gRPC cannot carry that token."""
    if token is not None and not (token.isascii() and token.isprintable()):
        raise ConfigError("a token is one line of printable ASCII; this one holds something else")


def read_token(file: Path | None) -> str | None:
    """Returns the token that a file holds, without the space around it; None for no file.

    Raises:
        ConfigError: it cannot be read, or holds no text.
    """
    if file is None:
        return None
    try:
        return read(file).decode().strip()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{file} holds no token: byte {error.start} is no UTF-8; a token is one line of "
            "printable ASCII"
        ) from None


def read(file: Path) -> bytes:
    """Returns a file's bytes.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
