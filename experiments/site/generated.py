"""All pages that are made of the code."""

from functools import cache

from experiments.site import commands, message_pages, modes, names, patches, settings


@cache
def pages() -> dict[str, str]:
    """Return the text of each page by its name in the site."""
    made: dict[str, str] = {}
    for module in (names, settings, commands, modes, patches, message_pages):
        made |= module.texts()
    return made
