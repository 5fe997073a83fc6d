"""MkDocs' hook: the documentation reads the same in the repository and on the site.

Pages link to files of the repository, and some pages lie at its root. On the site those become pages too, and a file
that is linked to is copied beside them. `mkdocs build --strict` then refuses a link or an anchor that leads nowhere.
"""

from __future__ import annotations

import posixpath
import re
import shutil
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
ROOT_PAGES = {"CONTRIBUTING.md": "contributing.md", "SECURITY.md": "reporting.md", "CHANGELOG.md": "changelog.md"}
"""Pages at the root of the repository, and their names on the site."""

SOURCES = "source"
"""The site's folder with files of the repository that pages link to."""

_FENCE = re.compile(r"^(```.*?^```)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages of the repository's root."""
    for name, page in ROOT_PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make links within the repository links within the site; those in code stay as they are."""
    at_root = {site: name for name, site in ROOT_PAGES.items()}
    source = at_root.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def on_site(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        return f"]({_site_path(target, source, config, files)}{match[2] or ''})"

    parts = _FENCE.split(markdown)
    return "".join(part if part.startswith("```") else _LINK.sub(on_site, part) for part in parts)


def _site_path(target: str, source: str, config: MkDocsConfig, files: Files) -> str:
    """Where a path of the repository is on the site, from a page at its top."""
    if target in ROOT_PAGES:
        return ROOT_PAGES[target]
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    if not (ROOT / target).is_file():
        raise PluginError(f"{source} links to {target}, which is no file of the repository")
    path = f"{SOURCES}/{target}"
    if files.get_file_from_path(path) is None:
        files.append(File.generated(config, path, abs_src_path=str(ROOT / target)))
    return path


def on_post_build(*, config: MkDocsConfig) -> None:
    """Put llms.txt and the pages as Markdown beside the site, where programs look for them."""
    site = Path(config.site_dir)
    for page in Path(config.docs_dir).glob("*.md"):
        shutil.copyfile(page, site / page.name)
    index = (ROOT / "llms.txt").read_text(encoding="utf-8")
    (site / "llms.txt").write_text(index.replace("](docs/", "]("), encoding="utf-8")
