"""What of a config may leave the machine: every value, with paths cut to their last part and passwords removed."""

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

PATHS = (("output_dir",), ("resume",), ("data", "source"), ("data", "image_root"), ("model", "weights"))
"""Settings that are paths."""


def shareable(config: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a config's sections in which paths are base names and the tracking address has no secrets.

    >>> shareable({"data": {"source": "/home/ann/labels.csv"}})
    {'data': {'source': 'labels.csv'}}
    """
    copy: dict[str, Any] = {key: dict(value) if isinstance(value, dict) else value for key, value in config.items()}
    for *sections, name in PATHS:
        place: dict[str, Any] = copy
        for section in sections:
            place = place.get(section, {})
        if place.get(name):
            place[name] = Path(place[name]).name
    uri = copy.get("tracking", {}).get("uri")
    if uri:
        copy["tracking"]["uri"] = shareable_uri(uri)
    return copy


def shareable_uri(uri: str) -> str:
    """Return a tracking address without user, password and folders of this machine.

    >>> shareable_uri("https://ann:secret@mlflow.example.org:5000/a")
    'https://mlflow.example.org:5000/a'
    >>> shareable_uri("sqlite:////home/ann/runs/mlflow.db")
    'sqlite:///mlflow.db'
    """
    scheme, separator, rest = uri.partition("://")
    try:  # a password may hold slashes, which would end the host
        parts = urlsplit(f"{scheme}://{rest.rpartition('@')[2]}" if separator else uri)
    except ValueError:
        return f"{scheme}://…"
    if parts.scheme in ("http", "https"):
        return urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))
    if parts.scheme.startswith("sqlite") or parts.scheme in ("", "file"):
        prefix = f"{parts.scheme}:///" if parts.scheme else ""
        return prefix + Path(parts.path).name
    return f"{parts.scheme}://{parts.netloc}"


def without_secrets(text: str) -> str:
    """Return a message of a library with user, password and query cut out of the addresses that it repeats.

    >>> without_secrets("cannot reach http://ann:se@cret@host:5000/?token=secret")
    'cannot reach http://host:5000/'
    """
    return re.sub(r"\?\S*", "", re.sub(r"//\S*@", "//", text))
