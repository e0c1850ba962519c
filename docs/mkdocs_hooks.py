"""Hooks of the site: the pages at the root of the repository are pages of it, and so are the measurements.

mkdocs takes pages from one folder only. Links between all of them are written for a repository browser; here they are
brought into the form that the site has.
"""  # noqa: INP001 - loaded by mkdocs, not a module of the package

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent

# Places in the repository, and in the site.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
RESULTS = "benchmarks/results"


def on_files(files: Any, config: Any) -> Any:
    """Add the pages and the measurements that lie outside of the folder of the pages."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text("utf-8")))
    for path in sorted((ROOT / RESULTS).glob("*.json")):
        files.append(File.generated(config, f"results/{path.name}", abs_src_path=os.fspath(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Bring the links of a page into the form that the site has."""
    own = page.file.src_uri
    source = next((name for name, place in PAGES.items() if place == own), f"docs/{own}")

    def moved(link: re.Match[str]) -> str:
        target, anchor = link.group(1), link.group(2)
        if not target or "://" in target:
            return link.group(0)
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        path = PAGES.get(path, path).removeprefix("docs/").replace(f"{RESULTS}/", "results/")
        return f"]({posixpath.relpath(path, posixpath.dirname(own) or '.')}{anchor})"

    return re.sub(r"\]\(([^)#]*)(#?[^)]*)\)", moved, markdown)
