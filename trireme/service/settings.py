"""Settings of a tier: one frozen class is the only source of flag, environment name and help.

Only a tier's `__main__` calls `load_settings`; everything behind it gets the finished object.
"""

from __future__ import annotations

import ipaddress
import json
import os
import ssl
import sys
from argparse import Action, ArgumentParser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar, get_args, get_origin

from pydantic import BeforeValidator, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

EXIT_OK: Final = 0
EXIT_BAD_ARGUMENTS: Final = 2
EXIT_MODEL: Final = 3
EXIT_PORT: Final = 4


def _split(value: Any) -> Any:
    """Lists come as JSON (`["a","b"]`) or separated by commas; the CLI wraps them once more."""
    if isinstance(value, str):
        text = value.strip()
        items = json.loads(text) if text.startswith("[") else text.split(",")
    else:
        items = value
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        raise ValueError("give a list such as a,b or a JSON list of strings")
    return tuple(item.strip() for item in items if item.strip())


Strings = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
"""A list flag: `--flag a,b`, `--flag '["a","b"]'`, or the same in the environment."""


def settings_config(tier: str) -> SettingsConfigDict:
    """The pydantic-settings configuration of a tier's Settings class."""
    return SettingsConfigDict(
        env_prefix=f"TRIREME_{tier.upper()}_",
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        cli_prog_name=f"python -m {tier}",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_exit_on_error=False,
        cli_hide_none_type=True,
        protected_namespaces=(),
    )


class TierSettings(BaseSettings):
    """What all tiers take. A subclass sets `model_config = settings_config(<tier>)` and `port`."""

    host: str = Field("127.0.0.1", description="address to bind")
    port: int = Field(0, ge=0, le=65535, description="port to bind; 0 takes a free one")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe level that is logged"
    )
    log_format: Literal["text", "json"] = Field("text", description="how log lines are written")
    ssl: bool = Field(False, description="serve HTTPS with SSL_KEYFILE and SSL_CERTFILE")
    ssl_keyfile: Path | None = Field(None, description="TLS key (or env SSL_KEYFILE)")
    ssl_certfile: Path | None = Field(None, description="TLS certificate (or env SSL_CERTFILE)")
    cluster_token: str = Field(
        "", description="secret shared by the tiers (or env TRIREME_CLUSTER_TOKEN)", repr=False
    )
    allow_unauthenticated: bool = Field(
        False, description="bind a non-loopback address without a cluster token"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flag, then TRIREME_<TIER>_<FLAG>, then the names that all tiers share."""
        shared = {
            field: os.environ[name]
            for field, name in (
                ("ssl_keyfile", "SSL_KEYFILE"),
                ("ssl_certfile", "SSL_CERTFILE"),
                ("cluster_token", "TRIREME_CLUSTER_TOKEN"),
            )
            if os.environ.get(name)
        }
        return init_settings, env_settings, InitSettingsSource(settings_cls, shared)

    @model_validator(mode="after")
    def _tls_has_files(self) -> Self:
        if not self.ssl:
            return self
        for name, path in (
            ("SSL_KEYFILE", self.ssl_keyfile),
            ("SSL_CERTFILE", self.ssl_certfile),
        ):
            if path is None:
                raise ValueError(f"--ssl needs {name}")
            if not path.is_file():
                raise ValueError(f"{name}: no file at {path}")
        self._tls_files_fit()
        return self

    def _tls_files_fit(self) -> None:
        """Load them as the server will, which could not tell a person what is wrong."""
        key, chain = self.ssl_keyfile, self.ssl_certfile
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                str(chain), str(key), _no_password
            )
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise ValueError(
                    f"SSL_KEYFILE {key} is not the key of the certificate SSL_CERTFILE {chain}"
                ) from None
            raise ValueError(
                f"SSL_CERTFILE {chain} and SSL_KEYFILE {key} are no certificate chain and key in "
                f"PEM ({error.reason or error.strerror})"
            ) from None
        except OSError as error:
            raise ValueError(
                f"SSL_KEYFILE {key}, SSL_CERTFILE {chain}: {error.strerror or error}"
            ) from None

    def require_token_off_loopback(self) -> None:
        """For controller and worker: an open control port needs a token.

        Raises:
            ValueError: bound to an address that is not loopback, without a cluster token.
        """
        if self.cluster_token or self.allow_unauthenticated or is_loopback(self.host):
            return
        raise ValueError(
            f"--host {self.host} is not loopback: set --cluster-token "
            "(or TRIREME_CLUSTER_TOKEN), or say --allow-unauthenticated"
        )


def _no_password() -> str:
    """OpenSSL would ask the terminal, for ever."""
    raise ValueError("SSL_KEYFILE is encrypted: give a key without a password")


def is_loopback(host: str) -> bool:
    """Whether `host` names this machine only; an unknown name does not."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


_Settings = TypeVar("_Settings", bound=TierSettings)


def _refuse_empty_values(args: Sequence[str]) -> None:
    """`--api-keys "$KEYS"` with an unset variable must not start an open gateway."""
    for before, arg in zip(["", *args], args, strict=False):
        flag, _, value = arg.partition("=")
        if flag.startswith("--") and "=" in arg and not value.strip():
            raise SettingsError(f"{flag} is empty")
        if before.startswith("--") and "=" not in before and not arg.strip():
            raise SettingsError(f"{before} is empty")


def _placeholder(annotation: Any) -> str | None:
    """What stands for a flag's value in the help; None where argparse says it better."""
    kinds = [kind for kind in get_args(annotation) or (annotation,) if kind is not type(None)]
    if get_origin(annotation) is tuple:
        return "a,b"
    if bool in kinds or get_origin(annotation) is Literal:
        return None
    return {int: "N", float: "NUMBER", Path: "PATH"}.get(kinds[0], "TEXT")


def _default_words(default: object) -> str:
    """The default for people: nothing where there is none."""
    if default is None or default is False or default in ("", ()):
        return ""
    if isinstance(default, float):
        return f" (default: {default:g})"
    words = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
    return f" (default: {words})"


def _for_people(cls: type[BaseSettings]) -> Callable[..., Action]:
    """How flags are added to the parser: their help as a person would write it."""

    def add_argument(parser: ArgumentParser, *names: str, **given: Any) -> Action:
        field = cls.model_fields.get(given.get("dest", ""))
        if field is not None:
            words = f"{field.description}{_default_words(field.default)}"
            given["help"] = words.replace("%", "%%")
            if given.get("metavar") and (placeholder := _placeholder(field.annotation)):
                given["metavar"] = placeholder
        return parser.add_argument(*names, **given)

    return add_argument


def load_settings(cls: type[_Settings], argv: Sequence[str] | None = None) -> _Settings:
    """Settings from flags and environment; bad ones end the process with one line and code 2."""
    try:
        args = list(sys.argv[1:] if argv is None else argv)
        _refuse_empty_values(args)
        prefix = cls.model_config["env_prefix"]
        flags = CliSettingsSource[Any](cls, add_argument_method=_for_people(cls))
        flags.root_parser.epilog = (
            f"Each flag has an environment name: --log-level is {prefix}LOG_LEVEL. A flag beats it."
        )
        return cls(_cli_settings_source=flags(args=args))
    except ValidationError as error:
        first = error.errors()[0]
        flag = "".join(f"--{str(part).replace('_', '-')}: " for part in first["loc"][:1])
        reason = first["msg"].removeprefix("Value error, ")
        given = "" if first["type"] == "value_error" else f" (given {str(first['input'])[:80]!r})"
        message = f"{flag}{reason}{given}"
    except SettingsError as error:
        message = str(error.__cause__ or error).removeprefix("error parsing CLI: ")
    sys.stderr.write(f"{cls.model_config['cli_prog_name']}: {message}\n")
    raise SystemExit(EXIT_BAD_ARGUMENTS)
