"""The report: one HTML file that holds a run and asks nothing of any server."""

import base64
import hashlib
import html
import json
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path

from saelign.errors import MissingFileError
from saelign.files import written
from saelign.report.blocks import as_text
from saelign.report.content import content_of
from saelign.results import NEEDED, Run, open_run

FILE_NAME = "report.html"

ROOM = 16 * 2**20
"""Bytes of a page, about: what most mail servers let through as an attachment."""


def write_report(
    run: Run,
    path: str | Path | None = None,
    *,
    room: int = ROOM,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Path:
    """Write the page of a run; gives its path.

    Args:
        run: The run; what its folder lacks the page says.
        path: Where it goes; `report.html` in the run's folder if None.
        room: Bytes that it may have, about. Cells that find no room are told without features.
        progress: Told how many cells are packed, and of how many.

    Raises:
        StorageError: It cannot be written.
    """
    path = run.folder / FILE_NAME if path is None else Path(path).expanduser()
    content = content_of(run, room=room, progress=progress)
    page = page_of(str(run.info["name"]), content.blocks)
    with written(path) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")
    return path


def page_of(name: str, blocks: Mapping[str, bytes]) -> str:
    """The page's text.

    Scripts and styles are named by their hashes in the page's own policy, so that nothing else in
    it can ever run, and nothing may be asked of any server.
    """
    built = files("saelign.report").joinpath("page", "built")
    script = built.joinpath("report.js").read_text(encoding="utf-8")
    style = built.joinpath("report.css").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src {hash_of(script)}; style-src {hash_of(style)}; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    data = "\n".join(
        f'<script type="application/octet-stream;base64" data-block="{html.escape(key)}">'
        f"{as_text(block)}</script>"
        for key, block in blocks.items()
    )
    title = html.escape(f"{name} · saelign")
    wait = f'<main class="wait"><h1>{html.escape(name)}</h1><p>Opening the report …</p></main>'
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta name="generator" content="saelign">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<div id="app">{wait}</div>
<noscript><p>This page draws its figures with JavaScript, which is switched off here. The same
numbers lie in the run's folder as CSV and Parquet files, figures as SVG and PNG.</p></noscript>
{data}
<script>{script}</script>
</body>
</html>
"""


def hash_of(text: str) -> str:
    """A script or style as a policy names it."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def blocks_in(page: str) -> dict[str, bytes]:
    """The blocks of a page, by name: what a program reads back from a report."""
    found = {}
    for part in page.split('<script type="application/octet-stream;base64" data-block="')[1:]:
        name, _, rest = part.partition('">')
        text, _, _ = rest.partition("</script>")
        found[html.unescape(name)] = base64.b64decode(text)
    return found


def open_any(folder: str | Path) -> Run:
    """The run in a folder, finished or not.

    Raises:
        MissingFileError: No run there.
        DamagedError: Its `run.json` cannot be read.
        FormatError: It was written by a newer version, or by one that is too old.
    """
    try:
        return open_run(folder)
    except MissingFileError:
        path = Path(folder) / "run.json"
        if not path.is_file():
            raise
        info = json.loads(path.read_text(encoding="utf-8"))
        if not info.keys() >= NEEDED - {"models"}:
            raise
        return Run(Path(folder), {"models": {}, **info})
