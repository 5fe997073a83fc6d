"""The same inputs make the same image, wherever and whenever; and what an image says of itself."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from images import build, shell
from images.build import RECIPES
from images.engine import Buildah

DOCKERFILE = """\
ARG BASE_IMAGE=scratch
FROM ${BASE_IMAGE}
COPY code /opt/code
USER 10001:10001
"""

needs_buildah = pytest.mark.skipif(
    shutil.which("buildah") is None or os.getuid() != 0,
    reason="buildah is not installed, or this is not root; Docker keeps the times of folders that it makes",
)


def built(folder: Path, monkeypatch: pytest.MonkeyPatch, moment: int) -> tuple[str, dict[str, str]]:
    """The digest and the labels of an image that is made in a store of its own, from files of another time."""
    monkeypatch.setenv("FINETUNE_CACHE", str(folder / "cache"))
    context = folder / "context"
    (context / "code").mkdir(parents=True)
    (context / "Dockerfile").write_text(DOCKERFILE)
    (context / "code" / "a.py").write_text("a = 1\n")
    (context / "code" / "run.sh").write_text("#!/bin/sh\n")
    (context / "code" / "run.sh").chmod(0o700)
    for path in context.rglob("*"):
        os.utime(path, (moment, moment))
    engine = Buildah()
    labels = build.labels(RECIPES["operator"])
    tag = build.build(
        "probe", context / "Dockerfile", context, "scratch", inputs=("code",), labels=labels, engine=engine
    ).tag
    described = json.loads(shell.run(engine._command("inspect", "--type=image", engine.local_reference(tag))))
    digest = engine.image_id(tag)
    assert digest is not None
    return digest, described["OCIv1"]["config"]["Labels"]


@needs_buildah
def test_two_builds_are_one_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, labels = built(tmp_path / "a", monkeypatch, 1_000_000_000)
    second, _ = built(tmp_path / "b", monkeypatch, 1_700_000_000)
    assert first == second
    assert build.labels(RECIPES["operator"]).items() <= labels.items()


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_an_image_says_what_it_is(recipe: build.Recipe) -> None:
    labels = build.labels(recipe)
    assert labels["org.opencontainers.image.title"] == recipe.name
    assert labels["org.opencontainers.image.version"] == build.version()
    assert len(labels["org.opencontainers.image.description"]) > 20
