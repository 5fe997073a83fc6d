"""The documentation's site: built strictly, complete, readable without the internet, and in step with the code."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

from finetune.api import reasons
from tools import reference

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. Strict: a link or anchor that leads nowhere, or a page without a place in mkdocs.yml, ends it."""
    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


def test_every_page_is_on_the_site(site: Path) -> None:
    pages = {page.stem for page in DOCS.glob("*.md")} | {"contributing", "reporting", "changelog"}
    assert pages <= {page.stem for page in site.glob("*.html")}
    assert (site / "source/examples/trainingrun-full.yaml").read_text() == (
        ROOT / "examples/trainingrun-full.yaml"
    ).read_text()


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    fetched = re.compile(r"<(?:script|img|iframe)[^>]+src=\"(?:https?:)?//|<link[^>]+href=\"(?:https?:)?//")
    assert [page.name for page in site.rglob("*.html") if fetched.search(page.read_text())] == []


def test_programs_find_the_pages_as_markdown(site: Path) -> None:
    listed = re.findall(r"\]\(([^)]+\.md)\)", (site / "llms.txt").read_text())
    docs = [name for name in listed if "/" not in name and name not in ("SKILL.md", "CONTRIBUTING.md")]
    assert len(docs) > 10
    assert [name for name in docs if not (site / name).is_file()] == []


@pytest.mark.parametrize(("name", "text"), reference.pages().items())
def test_a_generated_page_is_in_step_with_the_code(name: str, text: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == text, "the API has changed: make reference"


@pytest.mark.parametrize("picture", sorted(DOCS.glob("pictures/*.svg")), ids=lambda path: path.stem)
def test_a_picture_is_described_for_those_who_do_not_see_it(picture: Path) -> None:
    root = ElementTree.parse(picture).getroot()
    assert all((root.findtext(f"{SVG}{part}") or "").strip() for part in ("title", "desc"))


def test_the_picture_of_a_runs_life_has_its_phases() -> None:
    root = ElementTree.parse(DOCS / "pictures" / "life.svg").getroot()
    shown = {text.text for text in root.iter(f"{SVG}text")}
    phases = {
        reasons.QUEUED, reasons.PENDING, reasons.EXPORTING, reasons.TRAINING, reasons.REGISTERING,
        reasons.SUCCEEDED, reasons.FAILED, reasons.SUSPENDED, reasons.SUSPENDING,
    }  # fmt: skip
    assert phases <= shown
