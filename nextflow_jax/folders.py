"""Folders of this machine: what commands write, and what runs continue, lies in one. A URL is none."""

import os
import re

from nextflow_jax.errors import UserError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""With one slash: so a pathlib.Path has it. (One letter and a colon is no scheme.)"""

URL_FIX = (
    "mount the bucket and give the path where it is mounted (launch/tpu_pod.sh and launch/gke/jobset.sh do so with "
    "--bucket NAME)"
)


def url_rule(folder: str | os.PathLike) -> str:
    """Why this is no folder; "": it may be one."""
    return "is a URL, not a folder" if _URL.match(os.fspath(folder)) else ""


def require_folder(what: str, folder: str | os.PathLike) -> None:
    """Raises a UserError for a URL, of which a folder of that name would be made; `what` names the setting."""
    rule = url_rule(folder)
    if rule:
        raise UserError(f"{what} {folder}: {rule}; {URL_FIX}")
