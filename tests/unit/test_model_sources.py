"""Files on a volume, and the registry: which files are read, in which order, and what is said when there are none."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from model.data.sources import FileSource, SourceInterruptedError
from model.data.sources.patterns import glob_regex, labels, splits
from model.exits import FailureError


def line(text: str) -> str:
    return json.dumps({"prompt": text}) + "\n"


def write(folder: Path, **files: str) -> None:
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path = path.with_name(path.name.replace("_", "."))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def rows(source: FileSource) -> list[tuple[str, int, Any]]:
    return [(record.file, record.number, record.value["prompt"]) for record in source.records()]


def failure(source: FileSource) -> FailureError:
    with pytest.raises(FailureError) as caught:
        list(source.records())
    return caught.value


def test_one_file(tmp_path: Path) -> None:
    write(tmp_path, a_jsonl=line("1") + line("2"))
    source = FileSource("volume", tmp_path / "a.jsonl")
    assert rows(source) == [("", 1, "1"), ("", 2, "2")]
    assert source.description() == {"type": "volume", "path": str(tmp_path / "a.jsonl")}
    assert (source.name, source.version) == ("a.jsonl", None)


def test_a_link_to_nowhere_is_told_from_a_name_that_is_not_there(tmp_path: Path) -> None:
    write(tmp_path, a_jsonl=line("1"))
    (tmp_path / "b.jsonl").symlink_to("gone.jsonl")
    for path in (tmp_path / "b.jsonl", tmp_path, tmp_path / "*.jsonl"):
        assert failure(FileSource("volume", path)).message == (
            f"{tmp_path}/b.jsonl is a link to gone.jsonl, which does not exist"
        )


def test_a_link_to_itself_is_not_read_again(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").symlink_to("a.jsonl")
    found = failure(FileSource("volume", tmp_path / "a.jsonl"))
    assert found.message == f"{tmp_path}/a.jsonl is a link that leads back to itself: name the file"
    assert found.code == 10


def test_a_file_that_goes_away_is_read_again(tmp_path: Path) -> None:
    write(tmp_path, a_jsonl=line("1"), b_jsonl=line("2"))
    records = FileSource("volume", tmp_path).records()
    assert next(records).value == {"prompt": "1"}
    (tmp_path / "b.jsonl").unlink()
    with pytest.raises(SourceInterruptedError, match=r"b\.jsonl went away while .* was read"):
        list(records)


def test_all_files_of_a_glob_in_the_order_of_their_names(tmp_path: Path) -> None:
    write(tmp_path, b_jsonl=line("b"), a_jsonl=line("a"), c_csv="prompt\nc\n", sub__d_jsonl=line("d"))
    (tmp_path / ".hidden.jsonl").write_text(line("hidden"))
    assert rows(FileSource("volume", tmp_path / "*.jsonl")) == [("a.jsonl", 1, "a"), ("b.jsonl", 1, "b")]
    assert [row[0] for row in rows(FileSource("volume", tmp_path / "**" / "*"))] == [
        "a.jsonl", "b.jsonl", "c.csv", "sub/d.jsonl",
    ]  # fmt: skip
    assert [row[0] for row in rows(FileSource("volume", tmp_path / "[!a].*"))] == ["b.jsonl", "c.csv"]
    assert rows(FileSource("volume", tmp_path / "s?b" / "*.jsonl")) == [("", 1, "d")]


def test_a_file_whose_name_has_wildcards_is_taken_for_itself(tmp_path: Path) -> None:
    (tmp_path / "[1].jsonl").write_text(line("itself"))
    (tmp_path / "1.jsonl").write_text(line("other"))
    assert rows(FileSource("volume", tmp_path / "[1].jsonl")) == [("", 1, "itself")]


def test_all_data_files_of_a_folder(tmp_path: Path) -> None:
    write(
        tmp_path, **{"part-2_jsonl": line("2"), "part-1_jsonl": line("1"), "README_md": "no data", "sub__x_jsonl": ""}
    )
    assert rows(FileSource("volume", tmp_path)) == [("part-1.jsonl", 1, "1"), ("part-2.jsonl", 1, "2")]


INFO = '{"tickets": {"file_name": "tickets.jsonl", "columns": {"prompt": "prompt"}}}'
STATE = '{\n "_data_files": [{"filename": "part-0.jsonl"}],\n "_split": "train"\n}'


@pytest.mark.parametrize(
    ("files", "passed_over"),
    [
        ({"dataset_info.json": INFO}, ["dataset_info.json"]),
        ({"dataset_info.json": INFO, "state.json": STATE}, ["dataset_info.json", "state.json"]),
        ({"meta.json": STATE}, ["meta.json"]),
        ({"croissant.json": '{"@context": {}}', "about.json": '{"license": "mit"}'}, ["about.json", "croissant.json"]),
        ({"_SUCCESS": "", "_metadata.parquet": "x", ".part.jsonl.crc": "x", "README.md": "#"}, ["_metadata.parquet"]),
        ({".gitattributes": "*.jsonl filter=lfs", ".hidden.jsonl": line("x"), "LICENSE": "MIT"}, []),
    ],
)
@pytest.mark.parametrize("path", ["", "*", "*.json*"])
def test_files_that_describe_others_are_passed_over(
    tmp_path: Path, files: dict[str, str], passed_over: list[str], path: str
) -> None:
    for name, content in {**files, "part-0.jsonl": line("1"), "part-1.jsonl": line("2")}.items():
        (tmp_path / name).write_text(content)
    source = FileSource("volume", tmp_path / (path if path != "*" else "part-*") if path else tmp_path)
    if path == "*.json*":
        passed_over = [name for name in passed_over if ".json" in name]
    assert rows(source) == [("part-0.jsonl", 1, "1"), ("part-1.jsonl", 1, "2")]
    assert source.passed_over == ([] if path == "*" else passed_over)


def test_what_is_not_read_of_a_folder_is_told_where_it_may_hold_rows(tmp_path: Path) -> None:
    write(tmp_path, a_jsonl=line("1"), more__b_jsonl=line("2"), notes__x_txt="", empty__c_jsonl_bz2="x")
    for name in ("b.jsonl.bz2", "c.xlsx", "D.ZIP", "LICENSE.txt", ".hidden.zip", "notes.txt"):
        (tmp_path / name).write_text("x")
    source = FileSource("volume", tmp_path)
    assert rows(source) == [("", 1, "1")]
    assert source.passed_over == ["D.ZIP", "b.jsonl.bz2", "c.xlsx", "more/"]


def test_a_folder_of_folders_is_refused_with_the_one_that_holds_data(tmp_path: Path) -> None:
    write(tmp_path, data__train_parquet="x", images__a_png="x")
    assert f"a glob such as {tmp_path}/data/*; there is data, images" in failure(FileSource("volume", tmp_path)).message


def test_a_file_that_is_named_is_read_whatever_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(line("1"))
    assert rows(FileSource("volume", tmp_path / "state.json")) == [("", 1, "1")]


def test_files_of_one_row_each_are_all_read(tmp_path: Path) -> None:
    write(tmp_path, a_json=line("1"), b_json=line("2"))
    assert rows(FileSource("volume", tmp_path)) == [("a.json", 1, "1"), ("b.json", 1, "2")]
    write(tmp_path, a_json='{"question": "1"}', b_json='{"frage": "2"}')
    assert [path.name for path in FileSource("volume", tmp_path).files()] == ["a.json"]
    write(tmp_path, a_json='{"frage": "1"}')  # with a mapping these may be the rows
    assert [path.name for path in FileSource("volume", tmp_path).files()] == ["a.json", "b.json"]


def test_a_folder_of_several_splits_is_not_mixed(tmp_path: Path) -> None:
    write(tmp_path, train_jsonl=line("1"), test_jsonl=line("2"))
    said = failure(FileSource("volume", tmp_path))
    assert (said.code, said.reason) == (2, "InvalidSpec")
    assert (
        f"holds files of several splits (test, train): name the files to train on, for example {tmp_path}/train.jsonl"
        in (said.message)
    )


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("trian.jsonl", "trian.jsonl does not exist: did you mean train.jsonl?"),
        ("x", "x does not exist: there is data, train.jsonl (in "),
        ("no/such/folder/x.jsonl", "x.jsonl does not exist: there is data, train.jsonl (in "),
        ("dat/x.jsonl", "dat/x.jsonl does not exist: did you mean data? (in "),
        ("train.jsonl/x", "train.jsonl/x does not exist"),
        ("*.json", "no file matches"),
        ("*.json", "*.json: there is data, train.jsonl (in "),
        ("none/*.json", "no file matches"),
        ("data", "data is a directory without data files: name a file, or a glob such as"),
        ("data", "there is notes.txt"),
    ],
)
def test_what_is_not_there_is_named_with_the_nearest(tmp_path: Path, path: str, said: str) -> None:
    write(tmp_path, train_jsonl="", data__notes_txt="")
    found = failure(FileSource("volume", tmp_path / path))
    assert (found.code, found.reason) == (10, "DatasetUnavailable")
    assert said in found.message


def test_a_key_of_a_configmap_is_no_glob(tmp_path: Path) -> None:
    write(tmp_path, a_jsonl=line("a"))
    assert failure(FileSource("configMap", tmp_path / "*.jsonl")).code == 10


def test_a_file_that_is_broken_is_named(tmp_path: Path) -> None:
    write(tmp_path, a_jsonl=line("a"), b_jsonl="<html>")
    assert failure(FileSource("volume", tmp_path / "*.jsonl")).message.startswith("b.jsonl is an HTML page")


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    write(tmp_path, a_jsonl=line("a"))
    (tmp_path / "a.jsonl").chmod(0)
    assert failure(FileSource("volume", tmp_path / "a.jsonl")).code == 5


def test_a_file_that_changes_under_the_reader_is_read_again(tmp_path: Path) -> None:
    write(tmp_path, a_jsonl=line("1") + line("2"))
    source = FileSource("volume", tmp_path / "a.jsonl")
    records = source.records()
    next(records)
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write(line("3"))
    with pytest.raises(SourceInterruptedError, match=r"a\.jsonl changed while it was read"):
        list(records)


def test_a_file_that_appears_under_the_reader_is_not_missed(tmp_path: Path) -> None:
    write(tmp_path, b_jsonl=line("1"))
    records = FileSource("volume", tmp_path / "*.jsonl").records()
    next(records)
    write(tmp_path, a_jsonl=line("0"))
    with pytest.raises(SourceInterruptedError, match="changed while they were read"):
        list(records)


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    with subprocess.Popen([sys.executable, "-c", f"open({str(pipe)!r}, 'w').write({line('x')!r})"]):
        assert rows(FileSource("volume", pipe)) == [("", 1, "x")]


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("a/*.jsonl", ["a/x.jsonl", "a/.jsonl"], ["a/b/x.jsonl", "a/x.json", "x.jsonl"]),
        ("**/*.csv", ["x.csv", "a/b/x.csv"], ["x.csv.gz"]),
        ("a/**", ["a/x", "a/b/x"], ["b/x", "a"]),
        ("[ab]?.x", ["a1.x", "bb.x"], ["c1.x", "a.x", "a/.x"]),
        ("[!a].x", ["b.x"], ["a.x"]),
        ("a+(b).x", ["a+(b).x"], ["aab.x"]),
        ("[z-a]", [], ["z", "a"]),
        ("[", ["["], ["x"]),
    ],
)
def test_globs(pattern: str, matching: list[str], other: list[str]) -> None:
    regex = glob_regex(pattern)
    assert all(regex.fullmatch(path) for path in matching)
    assert not any(regex.fullmatch(path) for path in other)


@pytest.mark.parametrize(
    ("paths", "found"),
    [
        (["a.jsonl", "b.jsonl"], {"train": ["a.jsonl", "b.jsonl"]}),
        (["train.csv", "test.csv", "x.csv"], {"train": ["train.csv"], "test": ["test.csv"]}),
        (["my-dev_set.csv", "training.csv"], {"validation": ["my-dev_set.csv"], "train": ["training.csv"]}),
        (["trainer.csv"], {"train": ["trainer.csv"]}),
        (["constraint.csv", "latest.csv"], {"train": ["constraint.csv", "latest.csv"]}),
        (["en/train/test1.csv", "en/eval/a.csv"], {"train": ["en/train/test1.csv"], "test": ["en/eval/a.csv"]}),
        (
            ["data/train-00000-of-00001.parquet", "data/extra-00000-of-00001-ab.parquet", "test.csv"],
            {"train": ["data/train-00000-of-00001.parquet"], "extra": ["data/extra-00000-of-00001-ab.parquet"]},
        ),
    ],
)
def test_splits_follow_the_rules_of_the_hub(paths: list[str], found: dict[str, list[str]]) -> None:
    assert splits(paths) == found


def test_labels_leave_out_the_folders_that_all_share() -> None:
    assert labels(["/a/b/x", "/a/c/x"]) == ["b/x", "c/x"]
    assert labels(["/a/b/x"]) == [""]


def test_an_export_of_json_lines_loads_nothing_heavy(tmp_path: Path) -> None:
    write(tmp_path, a_jsonl="".join(f'{{"prompt": "p{n}", "completion": "c"}}\n' for n in range(3)))
    script = (
        "import sys; from model.data import export; "
        f"code = export.main(['--run-directory={tmp_path}/run', '--method=SFT', '--source=volume', "
        f"'--evaluation-percent=0', '--path={tmp_path}/a.jsonl']); "
        "heavy = {'pyarrow', 'sqlalchemy', 'huggingface_hub', 'numpy'} & set(sys.modules); "
        "sys.exit(code or ','.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class TestRegistry:
    """The registry's own behaviour is tested with the registry; here only what the source makes of it."""

    CONTENT = (line("1") + "\n" + '{"prompt": \n').encode()

    class Registry:
        url = "http://registry"

        def __init__(self, content: bytes, digest: str) -> None:
            self.content, self.digest = content, digest

        def dataset(self) -> dict[str, Any]:
            return {"name": "tickets", "version": 3, "sha256": self.digest}

        def dataset_rows(self) -> list[bytes]:
            return self.content.splitlines(keepends=True)

    def source(self, digest: str | None = None) -> Any:
        from model.data.sources import RegistrySource

        registry: Any = self.Registry(self.CONTENT, digest or hashlib.sha256(self.CONTENT).hexdigest())
        return RegistrySource(registry)

    def test_rows_and_description(self) -> None:
        source = self.source()
        first, second = source.records()
        assert (first.number, first.value) == (1, {"prompt": "1"})
        assert second.number == 3
        assert "not valid JSON" in str(second.value)
        assert (source.name, source.version) == ("dataset tickets version 3", 3)
        assert source.description() == {
            "type": "registry",
            "name": "tickets",
            "version": 3,
            "sha256": hashlib.sha256(self.CONTENT).hexdigest(),
        }

    def test_other_content_than_announced_is_read_again(self) -> None:
        with pytest.raises(SourceInterruptedError, match="arrived with another SHA-256"):
            list(self.source("0" * 64).records())
