"""Endpoint of the script for the phones' app."""

from collections.abc import Callable

from domaeka.config import Settings
from domaeka.errors import ConfigError
from domaeka.phone_script import JAVASCRIPT, fill_script, script_servers
from domaeka.schema import ScriptQuery
from domaeka.secrets import Secrets
from domaeka.web.api.endpoints import EndpointGroup, Request, bad_request, endpoint
from domaeka.web.routes import Answer
from domaeka.wire import is_name


class ScriptPages(EndpointGroup):
    """The endpoint of the script."""

    def __init__(self, secrets: Callable[[], Secrets], settings: Callable[[], Settings]) -> None:
        """@param secrets: those in force."""
        self._secrets = secrets
        self._settings = settings

    @endpoint(
        "GET",
        "/phone-script",
        "The script for the phones' app, with the secret key, the salt and the servers in it",
        subject="devices",
        answer=str,
        content_type=JAVASCRIPT,
    )
    def script(self, request: Request[ScriptQuery, None]) -> Answer:
        """The script, filled in."""
        query, secrets = request.query, self._secrets()
        if not is_name(query.bot):
            raise bad_request("bot: no bot can have this name")
        if query.pin and not query.tls:
            raise bad_request("pin: only with tls")
        hosts = () if query.host is None else query.host.split(",")
        try:
            servers = script_servers(hosts, self._settings(), tls=query.tls, pin=query.pin)
            script = fill_script(query.bot, secrets.secret_key, secrets.salt, servers)
        except ValueError as error:
            raise bad_request(f"host: {error}") from None
        except ConfigError as error:
            raise bad_request(str(error)) from None
        return Answer(script, content_type=JAVASCRIPT)
