"""TLS for phones: certificates that are read again while the server runs."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec
from cryptography import x509
from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.logger import Logger
from zope.interface import implementer

from domaeka.config import TlsSettings
from domaeka.errors import ConfigError
from domaeka.toml import check_private

#: Interval at which the files are checked for changes, in seconds.
CHECK_SECONDS: Final = 60.0

#: Remaining life below which a certificate is reported, in seconds: certificates of 90 days are
#: renewed 30 days before their end.
WARNING_SECONDS: Final = 14 * 86_400.0
#: TLS 1.2 ciphers: forward secrecy only.  Source: RFC 9325, 4.2.
_CIPHERS: Final = b"ECDHE+AESGCM:ECDHE+CHACHA20"

#: A set of files as read: their stamps, the TLS context made of them, and the certificate's end.
Loaded: TypeAlias = tuple[list[tuple[int, int]], SSL.Context, float]


class TlsFiles(msgspec.Struct, frozen=True, kw_only=True):
    """
    PEM files for a TLS listener.

    @ivar certificate: the server's; its chain may follow it in the file.
    @ivar chain: more certificates of the chain; empty: none.
    @ivar client_authority: CA of client certificates; empty: clients need none.
    @ivar require_client: True if a client must show a certificate.
    @ivar names: names of the first three in error messages.
    """

    certificate: str
    key: str
    chain: str = ""
    client_authority: str = ""
    require_client: bool = False
    names: tuple[str, str, str]


def files_of(settings: TlsSettings) -> TlsFiles:
    """The files that the C{tls} section names."""
    return TlsFiles(
        certificate=settings.certificate,
        key=settings.key or settings.certificate,
        client_authority=settings.client_authority,
        require_client=settings.require_client,
        names=("tls.certificate", "tls.key" if settings.key else "tls.certificate", ""),
    )


@implementer(IOpenSSLServerConnectionCreator)
class Certificates:
    """
    The TLS context of a listener, TLS 1.2 and up, reloaded while the server runs.

    Files that cannot be used change nothing: the certificate that was read before stays in use.

    @ivar expires: the certificate's end, in seconds since 1970.
    """

    log = Logger()

    def __init__(self, files: TlsFiles) -> None:
        """@raise ConfigError: a file cannot be used; the message names it and the reason."""
        self._files = files
        self._stamps, self._context, self.expires = self.load()

    # IOpenSSLServerConnectionCreator

    def serverConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        return SSL.Connection(self._context, None)

    @property
    def path(self) -> str:
        """Path of the certificate."""
        return self._files.certificate

    def load(self) -> Loaded:
        """Read the files, for L{use}.  @raise ConfigError: one cannot be used."""
        # Stamps first: a file that is written in between is read again.
        return self._stamps_now(), *self._read()

    def use(self, loaded: Loaded) -> bool:
        """Use C{loaded} for all connections from now on.  @return: True if the files changed."""
        before = self._stamps
        self._stamps, self._context, self.expires = loaded
        if self._stamps == before:
            return False
        self.log.info(
            "certificate {path} read; it ends on {day}", path=self.path, day=_day(self.expires)
        )
        return True

    def health(self, now: float) -> str | None:
        """The problem with the certificate's end, if any.  @param now: in seconds since 1970."""
        day = _day(self.expires)
        if now >= self.expires:
            return f"it ended on {day}: phones that check it stay away"
        return f"it ends on {day}" if self.expires - now < WARNING_SECONDS else None

    def reload_if_changed(self) -> None:
        """Reload the files if they have changed."""
        stamps = self._stamps_now()
        if stamps == self._stamps:
            return
        try:
            self.use(self.load())
        except ConfigError as error:
            self._stamps = stamps  # logged once
            self.log.error(
                "certificate {path} stays as it was: {error}", path=self.path, error=error
            )

    def _read(self) -> tuple[SSL.Context, float]:
        files = self._files
        named, key_named, chain_named = files.names
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.set_options(
            SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE
        )
        context.set_cipher_list(_CIPHERS)
        context.set_session_id(b"domaeka")
        certificate = _read_file(named, files.certificate)
        _read_file(key_named, files.key)
        key = Path(files.key)
        check_private(key.stat(), key, f"{key_named}: {key}")
        try:
            context.use_certificate_chain_file(files.certificate)
            leaf = x509.load_pem_x509_certificate(certificate)
        except (SSL.Error, ValueError):
            raise _no_certificate(named, files.certificate) from None
        if files.chain:
            more = _read_file(chain_named, files.chain)
            try:
                for issuer in x509.load_pem_x509_certificates(more):
                    context.add_extra_chain_cert(issuer)
            except (SSL.Error, ValueError):
                raise _no_certificate(chain_named, files.chain) from None
        locked = False

        def refuse(*_: object) -> bytes:
            """No passphrase: nobody is there to type it."""
            nonlocal locked
            locked = True
            return b""

        context.set_passwd_cb(refuse)
        try:
            context.use_privatekey_file(files.key)
            context.check_privatekey()
        except (SSL.Error, ValueError):
            why = "has a passphrase" if locked else "not the key of the certificate"
            raise ConfigError(f"{key_named}: {files.key}: {why}") from None
        if files.client_authority:
            _read_file("tls.client_authority", files.client_authority)
            try:
                context.load_verify_locations(files.client_authority)
            except (SSL.Error, ValueError):
                raise _no_certificate("tls.client_authority", files.client_authority) from None
            needed = SSL.VERIFY_FAIL_IF_NO_PEER_CERT if files.require_client else 0
            context.set_verify(SSL.VERIFY_PEER | needed, lambda *verdict: bool(verdict[-1]))
        return context, leaf.not_valid_after_utc.timestamp()

    def _stamps_now(self) -> list[tuple[int, int]]:
        """Time and inode of each file: they differ once it has changed."""
        stamps = []
        files = self._files
        paths = files.certificate, files.key, files.chain, files.client_authority
        for path in filter(None, paths):
            try:
                status = Path(path).stat()
                stamps.append((status.st_mtime_ns, status.st_ino))
            except OSError:
                stamps.append((0, 0))
        return stamps


def _read_file(key: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{key}: {path}: {error.strerror or error}") from None


def _no_certificate(named: str, path: str) -> ConfigError:
    return ConfigError(f"{named}: {path}: no certificate in PEM form")


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()
