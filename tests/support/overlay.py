"""A changed copy of an installed package, in front of it on sys.path: links to its files, and the changed ones."""

import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

VERSIONS = {"accelerate": "1.15.0", "deepspeed": "0.19.8", "transformers": "5.23.0"}  # those that the patches are for
UPSTREAM = Path(__file__).parents[2] / "docs" / "upstream"


def patched(proposal: str, folder: Path) -> Path:
    """Make in `folder` a changed copy of the packages that a proposal of docs/upstream changes, and return the folder.

    `patch -p1` has to apply its file without fuzz and without an offset: the installed version is the one that it was
    written for.
    """
    change = UPSTREAM / proposal / "change.patch"
    for name in re.findall(r"^--- a/(\S+)$", change.read_text(encoding="utf-8"), re.MULTILINE):
        package, *_ = Path(name).parts
        installed = importlib.metadata.version(package)
        if installed != VERSIONS[package]:
            pytest.skip(f"the patch is for {package} {VERSIONS[package]}, and {installed} is installed")
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        link_around(Path(spec.origin).parents[1], folder, Path(name))
    if shutil.which("patch") is not None:
        command = ["patch", "-p1", "--fuzz=0", "-i", str(change)]
    else:  # a slim container; git takes no fuzz
        command = ["git", "apply", "-p1", "-v", str(change)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "offset" not in done.stdout, done.stdout
    return folder


def in_changed(folder: str | Path, code: str) -> tuple[str, str]:
    """Arguments of Python that run `code` with the packages of `folder`. They work in a fork, too."""
    return "-c", f"import sys\nsys.path.insert(1, {str(folder)!r})\n{code}"


def script_of(path: Path) -> str:
    """Code that runs a script."""
    return f"import runpy\nrunpy.run_path({str(path)!r}, run_name='__main__')"


def link_around(source: Path, target: Path, name: Path) -> None:
    """Copy the file `name` from `source` to `target`, and link what stands next to it and to the folders above it."""
    for part in name.parts[:-1]:
        source, target = source / part, target / part
        if target.is_symlink():
            target.unlink()
        target.mkdir(parents=True, exist_ok=True)
        for entry in source.iterdir():
            if entry.name != "__pycache__" and not (target / entry.name).exists():
                (target / entry.name).symlink_to(entry)
    copy = target / name.name
    copy.unlink()
    shutil.copyfile(source / name.name, copy)
