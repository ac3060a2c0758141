"""Verdicts of the self-check in the cache folder: one file for each kind and machine."""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

from adopt_hf.backends import cache as files

logger = logging.getLogger("adopt_hf")

LARGEST = 2**16  # bytes of a file; a verdict takes some hundred


class Verdict(NamedTuple):
    """The result of a check."""

    wrong: str | None  # the difference found; None: the kernel is right


def read(about: Mapping[str, str]) -> Verdict | None:
    """Return the verdict for the kind and machine in `about`, or None without a trusted one."""
    try:
        path = files.folder() / _name(about)
        with os.fdopen(files.open_trusted(path), "rb") as file:
            data = file.read(LARGEST + 1)
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError) as error:
        logger.info("no verdict of an earlier check of the Triton kernel is read: %s", error)
        return None
    try:
        found = json.loads(data) if len(data) <= LARGEST else None
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict) and found == _content(about, found.get("wrong")):
        return Verdict(found["wrong"])
    logger.info("%s is damaged, and the Triton kernel is checked again", path)
    return None


def write(about: Mapping[str, str], verdict: Verdict) -> None:
    """Keep a verdict for later processes. If that is not possible, a warning gives the reason."""
    try:
        data = json.dumps(_content(about, verdict.wrong), indent=1)
        files.write(files.folder() / _name(about), data.encode(), 0o644)
    except (OSError, RuntimeError) as error:
        _warn(str(error))


@cache
def _warn(reason: str) -> None:
    logger.warning(
        "The verdict on the Triton kernel is not cached, so every process checks it again, for some seconds: %s", reason
    )


def _name(about: Mapping[str, str]) -> str:
    return f"triton-{_digest(dict(about))[:32]}.json"


def _content(about: Mapping[str, str], wrong: object) -> dict[str, object]:
    return {"about": dict(about), "wrong": wrong, "digest": _digest([dict(about), wrong])}


def _digest(what: object) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
