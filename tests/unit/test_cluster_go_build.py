"""The key of a built program in the cache: the same for the same sources, another for any change of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.go_build import COREDNS, KUBE, LOCAL_PATH, PAUSE, TESTS, Program, cache_key
from tests.cluster.host import GO_SOURCES


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    for path, content in {
        "kube/main.go": "package main",
        "kube/go.sum": "a h1:1",
        "coredns/main.go": "package m",
    }.items():
        target = tmp_path / path
        target.parent.mkdir(exist_ok=True)
        target.write_text(content)
    return tmp_path


def test_the_key_depends_on_content_alone(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("clone")
    (elsewhere / "kube").mkdir()
    for path in (sources / "kube").iterdir():
        (elsewhere / "kube" / path.name).write_text(path.read_text())
    assert cache_key(elsewhere, KUBE) == cache_key(sources, KUBE)


@pytest.mark.parametrize("change", ["content", "checksum", "new file", "renamed"])
def test_any_change_of_the_module_is_another_key(sources: Path, change: str) -> None:
    before = cache_key(sources, KUBE)
    module = sources / "kube"
    match change:
        case "content":
            (module / "main.go").write_text("package other")
        case "checksum":
            (module / "go.sum").write_text("a h1:2")
        case "new file":
            (module / "more.go").write_text("")
        case "renamed":
            (module / "main.go").rename(module / "name.go")
    assert cache_key(sources, KUBE) != before


def test_another_module_does_not_matter(sources: Path) -> None:
    before = cache_key(sources, KUBE)
    (sources / "coredns/main.go").write_text("package changed")
    assert cache_key(sources, KUBE) == before


def test_programs_of_one_module_have_keys_of_their_own(sources: Path) -> None:
    assert len({cache_key(sources, program) for program in (KUBE, PAUSE, LOCAL_PATH)}) == 3


def test_linker_variables_are_part_of_the_key(sources: Path) -> None:
    newer = Program(KUBE.name, KUBE.module, KUBE.package, (("version", "v9"),))
    assert cache_key(sources, newer) != cache_key(sources, KUBE)


def test_the_version_that_is_built_is_the_version_that_is_pinned() -> None:
    pinned = (GO_SOURCES / "kube" / "go.mod").read_text()
    version = dict(KUBE.variables)["k8s.io/component-base/version.gitVersion"]
    assert f"k8s.io/kubernetes {version}\n" in pinned


@pytest.mark.parametrize("program", TESTS, ids=lambda program: program.name)
def test_every_module_pins_its_dependencies_by_checksum(program: Program) -> None:
    module = GO_SOURCES / program.module
    assert (module / "go.mod").is_file()
    assert "h1:" in (module / "go.sum").read_text()


def test_nothing_is_resolved_anew_while_building() -> None:
    assert "-mod=readonly" in COREDNS.argv(Path("coredns"))
