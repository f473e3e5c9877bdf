"""The clouds whose object stores are known: URLs, clients, credentials, and what their errors mean.

Credentials come from the environment, as the cloud's own tools take them, and are in no message: what a library says of
an error is never shown, only what is known of it here.

    client = client_at(read_url("s3://bucket/path"), PATIENT)
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from runner.errors import SettingError, did_you_mean

UNSAFE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # in no object's name
AMAZON, GOOGLE, MICROSOFT = "Amazon", "Google", "Microsoft"
SCHEMES = {"s3": AMAZON, "s3a": AMAZON, "gs": GOOGLE, "az": MICROSOFT, "azure": MICROSOFT, "abfs": MICROSOFT}
AWS_FILES = {"AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials", "AWS_CONFIG_FILE": "~/.aws/config"}
# What a message may say of an error: the first of these texts that it contains, in words.
REASONS: Mapping[str, str] = {
    "169.254.169.254": "no credentials were found in the environment, nor does this machine bring any",
    "metadata.google.internal": "no credentials were found in the environment, nor does this machine bring any",
    "onnection refused": "the connection was refused",
    "dns error": "its name is not known",
    "ertificate": "its certificate isn't trusted",
    "BadScheme": "its address is none",
    "imedOut": "no answer came in time",
    "onnection reset": "the connection was cut",
    "onnectionReset": "the connection was cut",
    "IncompleteMessage": "the connection was cut",
    "body error": "the connection was cut",
}
STATUS = {
    301: "the bucket is in another region, set AWS_REGION",
    401: "the credentials are not accepted",
    403: "access is denied, look at the credentials and what they allow",
    404: "there is no such bucket",
    429: "the store is overloaded",
    501: "the store can't do that",
    503: "the store is overloaded or down",
}


class Place(NamedTuple):
    """A URL, taken apart: `s3://bucket/prefix`. The prefix has no slash at its ends."""

    scheme: str
    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")


def read_url(url: str) -> Place:
    """A URL's parts; its path stands for itself, nothing in it is decoded.

    Raises:
        SettingError: it is none of a store that is known, or has something secret in it.
    """
    scheme, slashes, rest = url.partition("://")
    scheme = scheme.lower()
    if not slashes:
        raise SettingError(f"'{url}' lacks a slash; write s3://bucket/path")
    host, _, path = rest.partition("/")
    if "@" in host:
        raise SettingError(
            f"a URL with a user or a password ({scheme}://...@...): credentials come from the environment"
        )
    if "?" in rest:
        raise SettingError(f"'{scheme}://{rest.partition('?')[0]}' is followed by '?': only bucket and path are read")
    if scheme not in SCHEMES:
        raise SettingError(f"'{scheme}://' is not known as a store: {did_you_mean(scheme, SCHEMES)}")
    parts = [part for part in path.split("/") if part]
    if not host or ":" in host:
        raise SettingError(f"'{url}' names no bucket; write {scheme}://bucket/path")
    if {".", ".."} & set(parts) or UNSAFE.search(path):
        raise SettingError(f"'{url}': a path in a store has no '.', no '..' and no control characters")
    return Place(scheme, host, "/".join(parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a store is waited for, in seconds: for one answer, and with pauses between the tries in all."""

    answer: float = 120.0
    all: float = 60.0
    first_pause: float = 0.1
    tries: int = 1000


PATIENT = Patience()
# obstore draws a pause between the first one and the last one times the base: with its own base of 2 they don't grow.
BASE, LONGEST_PAUSE = 4, timedelta(seconds=8)


def reason_of(text: str) -> str:
    """What a library's message says, without anything of what it contains."""
    status = re.search(r"status code: (\d{3})", text)
    code = re.search(r"<Code>([A-Za-z]{1,40})</Code>", text)
    known = next((words for part, words in REASONS.items() if part in text), "")
    if known or not status:
        return known or "it can't be reached"
    number = int(status[1])
    return f"{STATUS.get(number, 'it answers with an error')} ({number}{f' {code[1]}' if code else ''})"


def client_at(place: Place, patience: Patience) -> Any:
    """What obstore calls a store, for the folder of the URL.

    Raises:
        SettingError: obstore isn't installed, or the environment says something that can't be.
    """
    try:
        from obstore import store
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "obstore":
            raise
        raise SettingError(f"'{place}' needs obstore: pip install 'manifest-runner[store]'") from error
    options: dict[str, Any] = {
        "prefix": place.prefix or None,
        # As the clouds' own tools: who says http:// means it.
        "client_options": {"allow_http": True, "timeout": timedelta(seconds=patience.answer), "connect_timeout": "5s"},
        "retry_config": {
            "max_retries": patience.tries,
            "retry_timeout": timedelta(seconds=patience.all),
            "backoff": {
                "init_backoff": timedelta(seconds=patience.first_pause),
                "base": BASE,
                "max_backoff": LONGEST_PAUSE,
            },
        },
    }
    kinds: Mapping[str, Any] = {AMAZON: store.S3Store, GOOGLE: store.GCSStore, MICROSOFT: store.AzureStore}
    kind = SCHEMES[place.scheme]
    if kind == AMAZON:
        # Not every store that speaks S3 can delete many at once.
        options |= {"disable_bulk_delete": True, **_aws_profile()}
    try:
        return kinds[kind](place.bucket, **options)
    except Exception as error:  # an environment variable that can't be read, say
        raise SettingError(
            f"'{place}' can't be opened: {type(error).__name__}; look at its environment variables"
        ) from None


def _aws_profile() -> dict[str, Any]:
    """Credentials from Amazon's own files, which boto3 reads; nothing where the environment says them."""
    profile = os.environ.get("AWS_PROFILE")
    there = any(Path(os.environ.get(name, usual)).expanduser().exists() for name, usual in AWS_FILES.items())
    if "AWS_ACCESS_KEY_ID" in os.environ or not (profile or there):
        return {}
    if importlib.util.find_spec("boto3") is None:
        if profile:
            raise SettingError("AWS_PROFILE is set: profiles are read by boto3, pip install boto3")
        return {}
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        return {"credential_provider": Boto3CredentialProvider()}
    except Exception as error:  # of boto3's own kinds; there are no credentials in the profile, say
        if profile:
            raise SettingError(
                f"AWS_PROFILE={profile}: boto3 finds no credentials there ({type(error).__name__})"
            ) from None
        return {}
