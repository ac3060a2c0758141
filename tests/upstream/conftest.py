"""The proposals of docs/upstream/, each applied once to a copy of the installed package."""

from collections.abc import Callable

import pytest

from tests.support.overlay import patched


@pytest.fixture(scope="session")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """`changed(proposal)`: a folder for sys.path with the changed packages."""
    folders: dict[str, str] = {}

    def folder_of(proposal: str) -> str:
        if proposal not in folders:
            folders[proposal] = str(patched(proposal, tmp_path_factory.mktemp(proposal)))
        return folders[proposal]

    return folder_of
