"""The lines of a job that the page shows: those between `# page:` and `# end of page`.

`"$@"` at the end of a command stands for the options of the tiny run. It is left out.
Comments for the linter are left out too.
"""

import re
import textwrap
from pathlib import Path

JOBS = Path(__file__).parent / "jobs"
MARKED = re.compile(r"^[ \t]*# page:\n(.*?)^[ \t]*# end of page$", re.DOTALL | re.MULTILINE)
LEFT_OUT = re.compile(r' "\$@"|[ ]*# noqa[^\n]*')
LANGUAGES = {".sh": "bash", ".py": "python", ".yaml": "yaml"}


def lines(job: str) -> dict[str, str]:
    """Return the marked lines of each file of a job, by the name of the file.

    Raises:
        ValueError: If no file of the job has marked lines.
    """
    found = {}
    for path in sorted((JOBS / job).iterdir()):
        passages = MARKED.findall(path.read_text(encoding="utf-8")) if path.suffix in LANGUAGES else []
        if passages:
            gap = "\n\n" if path.suffix == ".py" else "\n"
            text = gap.join(textwrap.dedent(passage).rstrip() for passage in passages)
            found[path.name] = LEFT_OUT.sub("", text)
    if not found:
        raise ValueError(f"no file of {JOBS / job} has lines between `# page:` and `# end of page`")
    return found


def blocks(job: str) -> str:
    """Return the marked lines of a job as code blocks of Markdown."""
    return "\n\n".join(f"```{LANGUAGES[Path(name).suffix]}\n{text}\n```" for name, text in lines(job).items())
