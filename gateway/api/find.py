"""Models and versions by the names that requests give, as far as who asks may see them."""

from __future__ import annotations

import re

from gateway.api.call import Asked
from gateway.api.jobs import BAD_VERSION
from gateway.jobs import Model
from gateway.problems import Problem, missing
from gateway.settings import NAME
from gateway.site import Known

VERSION = re.compile(r"[0-9a-f]{64}")


def visible(asked: Asked, model: Model | None) -> bool:
    """Private ones are their owner's."""
    return model is not None and (model.visibility == "public" or model.owner == asked.account)


def model(asked: Asked, full_name: str) -> Model:
    """Problem 404."""
    found = asked.site.store.get_model(full_name) if is_full_name(full_name) else None
    if found is None or not visible(asked, found):
        raise missing()
    return found


def own_model(asked: Asked) -> Model:
    """The path's, to be changed; Problem."""
    found = model(asked, path_name(asked))
    if found.owner != asked.account:
        raise Problem(403, f"{found.full_name} is not a model of {asked.account}.")
    return found


def path_name(asked: Asked) -> str:
    """owner/name of the path."""
    return f"{asked.path['owner']}/{asked.path['name']}"


def is_full_name(text: str) -> bool:
    """Whether it is an owner/name that there may be."""
    owner, _, name = text.partition("/")
    return bool(NAME.fullmatch(owner) and NAME.fullmatch(name))


def version(asked: Asked, version_id: str, full_name: str | None = None) -> Known | None:
    """By its id, of this model; None if there is none that may be seen."""
    known = asked.site.version(version_id) if VERSION.fullmatch(version_id) else None
    if known is None or full_name not in (None, known.version.model):
        return None
    return known if visible(asked, asked.site.store.get_model(known.version.model)) else None


def latest(asked: Asked, full_name: str) -> Known:
    """A model's latest version; Problem 404 without."""
    found = model(asked, full_name)
    known = asked.site.version(found.latest_version) if found.latest_version else None
    if known is None:
        raise missing(f"{full_name} has no version yet; train one, or start a worker that serves it.")
    return known


def reference(asked: Asked, text: str) -> Known:
    """id, owner/name or owner/name:id; Problem 422."""
    full_name, colon, version_id = text.rpartition(":")
    known: Known | None
    if colon:
        known = version(asked, version_id, full_name)
    elif "/" in text:
        try:
            known = latest(asked, text)
        except Problem:
            known = None
    else:
        known = version(asked, text)
    if known is None:
        raise BAD_VERSION
    return known
