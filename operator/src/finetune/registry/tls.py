"""HTTPS with a certificate that somebody renews: cert-manager replaces the files of a mounted Secret while we serve."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

import uvicorn

log = logging.getLogger(__name__)

TICKS = 600
"""Between two looks at the files; uvicorn ticks ten times a second."""


class RenewingServer(uvicorn.Server):
    """A server that reads its certificate again when the file has changed; connections that are open keep theirs."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._read = _content(config)

    async def on_tick(self, counter: int) -> bool:
        """uvicorn's, ten times a second."""
        if counter % TICKS == 0:
            self.renew()
        return await super().on_tick(counter)

    def renew(self) -> None:
        """Use the files as they are now; where they do not fit yet, the old ones until the next look."""
        content = _content(self.config)
        if content == self._read or self.config.ssl is None or self.config.ssl_certfile is None:
            return
        files = self.config.ssl_certfile, self.config.ssl_keyfile
        try:
            # Files that do not fit each other would leave the context without any: they are tried elsewhere first.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*files)
            self.config.ssl.load_cert_chain(*files)
        except (OSError, ssl.SSLError) as error:
            log.warning("the new certificate %s is not used: %s", self.config.ssl_certfile, error)
            return
        self._read = content
        log.info("the certificate %s has been renewed", self.config.ssl_certfile)


def _content(config: uvicorn.Config) -> bytes:
    try:
        return Path(config.ssl_certfile).read_bytes() if config.ssl_certfile else b""
    except OSError:
        return b""
