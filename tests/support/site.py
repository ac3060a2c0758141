"""Checks of built HTML: links to nothing, and what the browser would load from another host."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LOADS = {  # element -> the attribute with what the browser fetches by itself
    **{"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src", "embed": "src"},
    **{"object": "data", "link": "href"},
}


def local_links(page: str, root: Any) -> Iterator[tuple[str, str]]:
    """Yield the file and the anchor of each link of a page to the site."""
    for link in {*root.xpath("//*/@href"), *root.xpath("//*/@src")}:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        path = os.path.normpath(os.path.join(os.path.dirname(page), unquote(parts.path))) if parts.path else page
        yield path, unquote(parts.fragment)


def dead_links(site: Path, trees: dict[str, Any]) -> list[str]:
    """Return the links to files and anchors that the site does not have."""
    anchors = {page: {*root.xpath("//*/@id"), *root.xpath("//*/@name")} for page, root in trees.items()}
    found = []
    for page, root in trees.items():
        for path, anchor in local_links(page, root):
            file = "index.html" if path == "." else path
            if not (site / file).is_file() or (
                anchor and file in anchors and anchor not in anchors[file] | {"__tabbed"}
            ):
                found.append(f"{page}: {path}#{anchor}")
    return found


def loads_from_elsewhere(root: Any) -> list[str]:
    """Return the addresses on other hosts from which a page makes the browser load something by itself."""
    return [
        address
        for element, attribute in LOADS.items()
        for address in root.xpath(f"//{element}/@{attribute}")
        if urlsplit(address).netloc
    ]
