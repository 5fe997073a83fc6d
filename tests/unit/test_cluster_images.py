"""Images: tagged by their content, built from their listed inputs alone, and told how this machine reaches an index."""

from __future__ import annotations

import configparser
import importlib.metadata
from collections.abc import Callable
from pathlib import Path

import pytest

from images import build, host_access, run, shell
from images.base import rootfs
from images.build import LIBRARIES, RECIPES, content_key


@pytest.fixture
def context(tmp_path: Path) -> Path:
    for name, content in {"Dockerfile": "FROM x", "code/a.py": "a = 1", "code/b.py": "b = 2", "notes.md": "n"}.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    return tmp_path


def key(context: Path, *, base: str = "base:1") -> str:
    return content_key(context / "Dockerfile", context, ("code",), base)


CHANGES: dict[str, Callable[[Path], object]] = {
    "content": lambda context: (context / "code/a.py").write_text("a = 2"),
    "name": lambda context: (context / "code/a.py").rename(context / "code/c.py"),
    "new file": lambda context: (context / "code/c.py").write_text(""),
    "removed file": lambda context: (context / "code/b.py").unlink(),
    "made executable": lambda context: (context / "code/a.py").chmod(0o755),
    "Dockerfile": lambda context: (context / "Dockerfile").write_text("FROM y"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_every_change_of_an_input_is_another_tag(context: Path, change: Callable[[Path], object]) -> None:
    before = key(context)
    change(context)
    assert key(context) != before


def test_another_base_is_another_tag(context: Path) -> None:
    assert key(context, base="base:2") != key(context)


def test_what_is_not_in_the_image_does_not_change_its_tag(context: Path) -> None:
    before = key(context)
    (context / "notes.md").write_text("changed")
    (context / "code/__pycache__").mkdir()
    (context / "code/__pycache__/a.cpython-311.pyc").write_bytes(b"compiled")
    (context / "code/a.py").touch()
    assert key(context) == before


def test_a_missing_input_is_named(context: Path) -> None:
    with pytest.raises(shell.CommandError, match=r"gone does not exist"):
        content_key(context / "Dockerfile", context, ("gone",), "base:1")


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_a_dockerfile_copies_its_recipes_inputs_and_nothing_else(recipe: build.Recipe) -> None:
    lines = (shell.REPOSITORY / recipe.dockerfile).read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert copied
    for source in copied:
        assert any(source == name or source.startswith(f"{name}/") for name in recipe.inputs)
    for name in recipe.inputs:
        assert any(source == name or source.startswith(f"{name}/") for source in copied)


def test_what_is_made_from_the_trainers_libraries_stays_when_the_code_changes() -> None:
    lines = (shell.REPOSITORY / LIBRARIES.dockerfile).read_text().splitlines()
    first = lines[: lines.index(f"FROM {LIBRARIES.stage}")]
    assert f"FROM ${{BASE_IMAGE}} AS {LIBRARIES.stage}" in first
    assert [line.split()[1:-1] for line in first if line.startswith("COPY ")] == [list(LIBRARIES.inputs)]
    assert set(LIBRARIES.inputs) == set(RECIPES["trainer"].inputs) - {"model"}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_an_image_runs_as_10001_and_its_packages_are_checked_by_hash(recipe: build.Recipe) -> None:
    text = (shell.REPOSITORY / recipe.dockerfile).read_text()
    users = [line for line in text.splitlines() if line.startswith("USER ")]
    assert users[-1] == "USER 10001:10001"
    assert "--require-hashes" in text
    assert text.index("ARG BASE_IMAGE=") < text.index("FROM ${BASE_IMAGE}")


def test_pip_inside_asks_the_index_that_this_machine_asks(tmp_path: Path) -> None:
    configured = tmp_path / "host.conf"
    configured.write_text("[global]\nindex-url = https://index.example/simple\ncache-dir = /nowhere\n")
    bundle = tmp_path / "ca.pem"
    bundle.write_text("certificates")
    environment = {"PIP_CERT": str(bundle), "PIP_TRUSTED_HOST": "index.example", "PIP_FIND_LINKS": "/wheels"}
    secrets = host_access.secrets(tmp_path, environment=environment, files=[configured])
    assert secrets[host_access.CERTIFICATES] == bundle
    written = configparser.RawConfigParser()
    written.read(secrets[host_access.PIP_CONFIGURATION])
    assert dict(written["global"]) == {
        "index-url": "https://index.example/simple",
        "trusted-host": "index.example",
        "cert": "/run/secrets/certificates",
    }


def test_a_variable_wins_over_a_file(tmp_path: Path) -> None:
    configured = tmp_path / "host.conf"
    configured.write_text("[global]\nindex-url = https://file.example\n")
    settings = host_access.pip_settings({"PIP_INDEX_URL": "https://variable.example"}, [configured])
    assert settings == {"index-url": "https://variable.example"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("sources.list", "deb [signed-by=/k] https://mirror.example/debian bookworm main\n"),
        (
            "sources.list.d/debian.sources",
            "Types: deb\nURIs: https://mirror.example/debian\nSuites: bookworm bookworm-updates\n",
        ),
    ],
)
def test_the_debian_mirror_is_the_one_that_apt_uses(
    name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rootfs, "SOURCES", tmp_path)
    other = tmp_path / "sources.list.d" / "a-vendor.list"
    other.parent.mkdir()
    other.write_text("deb https://vendor.example/apt vendor-bookworm main\n")
    (tmp_path / name).write_text(text)
    assert rootfs.mirror() == "https://mirror.example/debian"


def test_without_a_mirror_the_error_names_the_other_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rootfs, "SOURCES", tmp_path)
    with pytest.raises(shell.CommandError, match="set BASE_IMAGE"):
        rootfs.mirror()


def test_tests_in_an_image_see_the_repository_before_the_image_and_their_own_settings() -> None:
    environment = run.container_environment({"FINETUNE_TEST_LONG": "1", "SECRET": "s", "HOME": "/root"})
    assert environment["PYTHONPATH"].split(":") == ["/src", "/test-tools"]
    assert environment["FINETUNE_TEST_LONG"] == "1"
    assert "SECRET" not in environment
    assert environment["TMPDIR"] == environment["HOME"] == "/scratch"


def test_pytest_is_copied_with_what_lets_it_find_its_plugins(tmp_path: Path) -> None:
    run.copy_tools(tmp_path)
    for package in run.TOOL_PACKAGES:
        [found] = importlib.metadata.distributions(name=package, path=[str(tmp_path)])
        assert found.version == importlib.metadata.version(package)
    assert (tmp_path / "pytest" / "__init__.py").is_file()


def test_a_package_with_compiled_parts_is_not_copied(tmp_path: Path) -> None:
    with pytest.raises(shell.CommandError, match="compiled parts"):
        run.copy_tools(tmp_path, packages=("pyyaml",))
