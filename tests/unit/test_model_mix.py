"""Several sources in one dataset: which rows are taken, what is told about each source, and what is refused."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import sqlite3
from array import array
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from model.data import export
from model.data.parts import Part, smallest, taken
from model.data.shapes import Shaper
from model.data.sources import FileSource
from model.files import RunDirectory
from tests.support.hub import Hub, Repository, hub
from tests.support.s3 import s3

if TYPE_CHECKING:
    from tests.support.postgresql import PostgreSQL

Entry = dict[str, Any]
A, B = '{"source": "volume", "path": "a"', '{"source": "volume", "path": "b"'
ALL = "--evaluation-percent=0"


class Mixer:
    """Runs exports of mixes, each into a directory of its own."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.folder, self.log, self.runs = folder, log, 0
        self.directory = RunDirectory(folder)

    def file(self, name: str, tag: str, rows: int, *, first: int = 0) -> Entry:
        """Write rows, and return the source that reads them."""
        path = self.folder / name
        content = ({"prompt": f"{tag}{number}", "completion": f"c{number}"} for number in range(first, first + rows))
        path.write_bytes(lines(*content))
        return {"source": "volume", "path": str(path)}

    def __call__(self, mix: Iterable[Entry], *flags: str, again: bool = False) -> int:
        self.runs += not again
        self.directory = RunDirectory(self.folder / f"run{self.runs}")
        arguments = [f"--run-directory={self.directory.path}", *(f"--mix={json.dumps(entry)}" for entry in mix)]
        return export.main([*arguments, *flags])

    @property
    def said(self) -> Any:
        """The last words."""
        return json.loads(self.log.read_text())

    @property
    def message(self) -> str:
        """Why the export failed."""
        return str(self.said["failure"]["message"]).replace(str(self.folder), "DIR")

    @property
    def manifest(self) -> Any:
        """What the export wrote about itself."""
        return json.loads(self.directory.manifest.read_text())

    @property
    def report(self) -> Any:
        """What it found."""
        return json.loads(self.directory.report.read_text())

    def rows(self) -> tuple[list[Any], list[Any]]:
        """The training rows and the held-out ones."""
        paths = (self.directory.train_rows, self.directory.evaluation_rows)
        train, evaluation = ([json.loads(line) for line in path.read_text().splitlines()] for path in paths)
        return train, evaluation


@pytest.fixture
def mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mixer:
    monkeypatch.setenv("TERMINATION_LOG", str(tmp_path / "termination.log"))
    return Mixer(tmp_path, tmp_path / "termination.log")


def lines(*rows: dict[str, Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def by_tag(rows: Iterable[Any]) -> Counter[str]:
    return Counter(row["prompt"][0] for row in rows)


def part(found: int, weight: int | None = None, max_rows: int | None = None) -> Part:
    source = FileSource("volume", Path("rows.jsonl"))
    return Part(source, Shaper("", "SFT", {}), 0, None, weight, max_rows, found=found)


@pytest.mark.parametrize(
    ("parts", "numbers"),
    [
        ([part(10), part(3)], [10, 3]),
        ([part(10, None, 4), part(3, None, 4)], [4, 3]),
        ([part(100, 1), part(100, 1)], [100, 100]),
        ([part(100, 3), part(100, 1)], [100, 33]),
        ([part(1000, 1), part(30, 3)], [10, 30]),
        ([part(90, 2), part(90, 3), part(90, 5)], [36, 54, 90]),
        ([part(7, 3), part(2, 1)], [6, 2]),  # the second has too few for all of the first
        ([part(50, 1), part(50, 1), part(1000, None, 20)], [50, 50, 20]),
        ([part(1, 1000), part(5, 1)], [1, 0]),
        ([part(0, 1), part(5, 1)], [0, 0]),
    ],
)
def test_how_many_rows_each_source_gives(parts: list[Part], numbers: list[int]) -> None:
    assert taken(parts) == numbers
    assert all(number <= part.found for number, part in zip(numbers, parts, strict=True))


@pytest.mark.parametrize("bits", [2, 10, 64])
def test_the_smallest_numbers_are_found_whatever_is_equal(bits: int) -> None:
    generator = random.Random(bits)
    numbers = [generator.getrandbits(bits) << (64 - bits) for _ in range(300)]
    for count in (0, 1, 2, 77, 299, 300, 301):
        bound, equal = smallest(array("Q", numbers), count)
        chosen = [number for number in numbers if number < bound] + [n for n in numbers if n == bound][:equal]
        assert sorted(chosen) == sorted(numbers)[:count]


def test_all_rows_of_all_sources_are_taken_in_their_order(mix: Mixer) -> None:
    sources = [mix.file("a.jsonl", "a", 3), {**mix.file("b.jsonl", "b", 2), "name": "tickets"}]
    assert mix(sources, ALL) == 0
    train, _ = mix.rows()
    places = [(row["prompt"], row["file"], row["row"]) for row in train]
    assert places == [
        ("a0", "mix[0] (a.jsonl)", 1),
        ("a1", "mix[0] (a.jsonl)", 2),
        ("a2", "mix[0] (a.jsonl)", 3),
        ("b0", "mix[1] (tickets)", 1),
        ("b1", "mix[1] (tickets)", 2),
    ]
    counts = [
        {"name": "a.jsonl", "rows": 3, "evaluationRows": 0, "found": 3, "dropped": 0},
        {"name": "tickets", "rows": 2, "evaluationRows": 0, "found": 2, "dropped": 0},
    ]
    assert mix.manifest["sources"] == mix.report["sources"] == mix.said["dataset"]["sources"] == counts
    assert [source["path"] for source in mix.manifest["source"]["found"]] == [sources[0]["path"], sources[1]["path"]]


def test_weights_thin_out_what_there_is_too_much_of_and_repeat_nothing(mix: Mixer) -> None:
    sources = [{**mix.file("a.jsonl", "a", 500), "weight": 1}, {**mix.file("b.jsonl", "b", 60), "weight": 3}]
    assert mix(sources, ALL) == 0
    train, _ = mix.rows()
    assert by_tag(train) == {"a": 20, "b": 60}
    assert len({row["prompt"] for row in train}) == 80
    assert [row["row"] for row in train[:20]] == sorted(row["row"] for row in train[:20])
    assert [source["found"] for source in mix.manifest["sources"]] == [500, 60]
    assert max(row["row"] for row in train[:20]) > 200  # from all over the source, not its beginning


def test_the_same_mix_takes_the_same_rows_and_another_seed_others(mix: Mixer) -> None:
    sources = [{**mix.file("a.jsonl", "a", 300), "maxRows": 40}, mix.file("b.jsonl", "b", 30)]
    taken_rows = []
    for flags in (["--seed=1"], ["--seed=1"], ["--seed=2"]):
        assert mix(sources, *flags, "--evaluation-percent=10") == 0
        taken_rows.append(mix.rows())
    assert taken_rows[0] == taken_rows[1]
    first, _, other = ({row["prompt"] for row in train + evaluation} for train, evaluation in taken_rows)
    assert len(first) == len(other) == 70
    assert 1 <= len(first - other) < 40
    assert mix(sources[::-1], "--seed=1", "--evaluation-percent=10") == 0
    train, evaluation = mix.rows()
    assert {row["prompt"] for row in train + evaluation} == first  # the place in the mix decides nothing
    assert {row["prompt"] for row in evaluation} == {row["prompt"] for row in taken_rows[0][1]}


def test_drawn_rows_are_held_out_like_all_others(mix: Mixer) -> None:
    """The hash that draws has nothing to do with the one that holds out: else all that is drawn would be held out."""
    sources = [{**mix.file("a.jsonl", "a", 4000), "maxRows": 400}, mix.file("b.jsonl", "b", 4000)]
    assert mix(sources, "--evaluation-percent=10") == 0
    held_out = by_tag(mix.rows()[1])
    assert 15 <= held_out["a"] <= 80
    assert 300 <= held_out["b"] <= 500


@pytest.mark.parametrize("rows", [200, 4000])  # few are dealt out at the end, many at once
def test_a_row_of_two_sources_is_never_on_both_sides(mix: Mixer, rows: int) -> None:
    sources = [mix.file("a.jsonl", "a", rows), mix.file("b.jsonl", "a", rows // 2)]
    assert mix(sources, "--evaluation-percent=10") == 0
    train, evaluation = mix.rows()
    assert evaluation
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in evaluation}
    assert mix.manifest["duplicates"] == rows // 2
    assert "mix[1] (b.jsonl) row 1 repeats mix[0] (a.jsonl) row 1" in mix.report["shownDuplicates"]


def test_repeated_rows_of_one_source_count_as_rows_where_only_some_are_taken(mix: Mixer, tmp_path: Path) -> None:
    (tmp_path / "same.jsonl").write_bytes(lines(*[{"prompt": "a", "completion": "b"}] * 50))
    same = {"source": "volume", "path": str(tmp_path / "same.jsonl"), "maxRows": 7}
    assert mix([same, mix.file("b.jsonl", "b", 5)], ALL) == 0
    assert by_tag(mix.rows()[0]) == {"a": 7, "b": 5}
    assert mix.manifest["duplicates"] == 6  # of those that are taken


def test_what_is_wrong_names_the_source_and_its_row(mix: Mixer, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(lines({"prompt": "p", "completion": "c"}, {"prompt": "p"}, {"prompt": "q", "completion": "d"}))
    sources = [mix.file("a.jsonl", "a", 3), {"source": "volume", "path": str(bad), "name": "tickets"}]
    assert mix(sources) == 3
    assert mix.said["failure"]["row"] == 2
    assert mix.message == "mix[1] (tickets) row 2: completion: is missing"
    bad.write_bytes(bad.read_bytes() + b"{\n")
    assert mix(sources) == 3
    assert mix.message.startswith("mix of 2 sources has 2 problems in 2 rows: mix[1] (tickets) row 2: completion: ")
    assert "; mix[1] (tickets) row 4: not valid JSON" in mix.message
    assert mix(sources, "--invalid-rows=Drop", ALL) == 0
    assert [source["dropped"] for source in mix.manifest["sources"]] == [0, 2]
    assert mix.manifest["dropped"] == 2


def test_each_source_has_its_own_columns(mix: Mixer, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines({"question": "a1", "answer": "b", "image": "x.png"}))
    (tmp_path / "b.jsonl").write_bytes(lines({"instruction": "b1", "output": "c", "input": "d"}))
    users = [{"role": "user", "content": "c1"}] * 2
    (tmp_path / "c.jsonl").write_bytes(lines({"messages": [*users, {"role": "assistant", "content": "d"}]}))
    sources: list[Entry] = [{"source": "volume", "path": str(tmp_path / f"{name}.jsonl")} for name in "abc"]
    sources[0] |= {"column": {"prompt": "question", "completion": "answer"}, "ignoreColumn": ["image"]}
    sources[2] |= {"turns": "Merge"}
    assert mix(sources, ALL) == 0
    train, _ = mix.rows()
    assert [(row.get("prompt"), row.get("completion")) for row in train[:2]] == [("a1", "b"), ("b1\n\nd", "c")]
    assert train[2]["messages"][0]["content"] == "c1\n\nc1"
    assert mix.manifest["shape"] == "messages"
    assert mix.manifest["detected"].startswith("mix[0] (a.jsonl): prompt and completion; prompt is the column question")
    assert ". mix[1] (b.jsonl): instruction, input and output (Alpaca)" in mix.manifest["detected"]


def test_what_a_source_does_not_say_is_as_for_all(mix: Mixer, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines({"q": "a1", "a": "b"}))
    (tmp_path / "b.jsonl").write_bytes(lines({"frage": "b1", "antwort": "c"}))
    sources: list[Entry] = [{"source": "volume", "path": str(tmp_path / f"{name}.jsonl")} for name in "ab"]
    sources[1] |= {"column": {"prompt": "frage", "completion": "antwort"}}
    assert mix(sources, "--column=prompt=q", "--column=completion=a", ALL) == 0
    assert [row["prompt"] for row in mix.rows()[0]] == ["a1", "b1"]


def test_rows_that_are_learned_in_different_ways_do_not_mix(mix: Mixer, tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_bytes(lines({"text": "Once upon a time"}, {"text": "there was"}))
    text = {"source": "volume", "path": str(tmp_path / "text.jsonl"), "name": "wiki"}
    assert mix([mix.file("a.jsonl", "a", 3), text]) == 3
    assert mix.message == (
        "mix[1] (wiki) row 1 has text rows, but mix[0] (a.jsonl) has prompt-completion rows: mix sources of one kind, "
        "or map their columns"
    )


def test_a_source_for_another_method_is_named(mix: Mixer, tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_bytes(lines({"prompt": "b1", "chosen": "a", "rejected": "b"}))
    assert mix([mix.file("a.jsonl", "a", 3), {"source": "volume", "path": str(tmp_path / "b.jsonl")}]) == 3
    assert mix.message.startswith("mix[1] (b.jsonl) row 1: has prompt, chosen and rejected: that is for method DPO;")


@pytest.mark.parametrize("flags", [[], ["--invalid-rows=Drop"]])
def test_a_source_that_gives_nothing_ends_the_export(mix: Mixer, tmp_path: Path, flags: list[str]) -> None:
    (tmp_path / "none.jsonl").write_bytes(b"\n" if not flags else b"{\n")
    none = {"source": "volume", "path": str(tmp_path / "none.jsonl")}
    invalid = ", 1 invalid (mix[1] (none.jsonl) row 1: not valid JSON: " if flags else ""
    begin, end = f"mix[1] (none.jsonl) has no usable row{invalid}", ": mend it, or leave it out of the mix"
    for weights in ({}, {"weight": 1}):  # beside an empty source all weights come to nothing
        assert mix([{**mix.file("a.jsonl", "a", 3), **weights}, {**none, **weights}], *flags) == 3
        assert mix.message.startswith(begin)
        assert mix.message.endswith(end)
        assert "mix[0]" not in mix.message
    sources = [{**mix.file("a.jsonl", "a", 9), "weight": 1}, {**mix.file("b.jsonl", "b", 9), "weight": 100}]
    assert mix(sources) == 3
    assert mix.message.startswith("mix[0] (a.jsonl) gives no row of its 9: its weight is too small beside the others'")


def test_a_source_that_is_not_there_is_named(mix: Mixer) -> None:
    absent = {"source": "volume", "path": str(mix.folder / "absent.jsonl"), "name": "old tickets"}
    assert mix([mix.file("a.jsonl", "a", 3), absent]) == 10
    assert mix.message.startswith("mix[1] (old tickets): DIR/absent.jsonl does not exist: ")
    assert mix.said["failure"]["reason"] == "DatasetUnavailable"


def test_several_files_of_a_source_are_named_too(mix: Mixer, tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    for name in "xy":
        mix.file(f"many/{name}.jsonl", name, 2)
    assert mix([mix.file("a.jsonl", "a", 1), {"source": "volume", "path": str(tmp_path / "many")}], ALL) == 0
    assert [row["file"] for row in mix.rows()[0][1:]] == ["mix[1] (many) x.jsonl"] * 2 + ["mix[1] (many) y.jsonl"] * 2


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (["a.jsonl"], "--mix[0]: must be a JSON object, such as "),
        (['["a.jsonl"]'], "--mix[0]: must be a JSON object, such as "),
        (['{"path": "a"}'], "--mix[0]: needs source"),
        (['{"source": "volume"}'], "--mix[0]: source=volume needs path"),
        (['{"source": "sql", "query": "select 1", "path": "a"}'], "path: is for source=configMap or volume only"),
        ([A + ', "weight": 0}'], "--mix[0].weight: must be greater than or equal to 1"),
        ([A + ', "maxRows": 0}'], "--mix[0].maxRows: must be greater than or equal to 1"),
        ([A + ', "wait": 1}'], "--mix[0].wait: "),
        ([A + ', "weight": 1, "maxRows": 2}'], "--mix[0]: give weight or maxRows, not both"),
        ([A + ', "weight": 1}', B + "}"], "one weight alone says nothing"),
        ([A + ', "weight": 1}', A + ', "weight": 1}', B + "}"], "each needs one, or maxRows"),
        ([A + ', "name": "x"}', B + ', "name": "x"}'], "two sources are called x"),
        ([A + ', "column": {"question": "q"}}'], "--mix[0]: --column=question=...: no such field"),
        (['{"source": "registry"}'] * 2, "only one source may be of the registry"),
        (['{"source": "registry"}'], "--mix: a source of the registry needs --registry-url"),
        (['{"source": "sql", "query": "select 1"}'], "--mix[0]: --source=sql needs the environment variable DATASET"),
        ([A + "}"] * 17, "--mix: "),
    ],
)  # fmt: skip
def test_mixes_that_make_no_sense(mix: Mixer, entries: list[str], said: str) -> None:
    arguments = [f"--run-directory={mix.folder}/run", *(f"--mix={entry}" for entry in entries)]
    assert export.main(arguments) == 2
    assert said in mix.message


def test_a_source_or_a_mix_is_needed_and_not_both(mix: Mixer) -> None:
    assert mix([]) == 2
    assert "--source: is required, or --mix" in mix.message
    assert mix([mix.file("a.jsonl", "a", 1)], "--source=volume", "--path=a") == 2
    assert "give --source or --mix, not both" in mix.message


def test_a_second_start_does_nothing_and_another_mix_is_exported_anew(mix: Mixer) -> None:
    sources = [{**mix.file("a.jsonl", "a", 50), "weight": 1}, {**mix.file("b.jsonl", "b", 50), "weight": 1}]
    assert mix(sources) == 0
    written = mix.directory.manifest.stat().st_mtime_ns
    Path(sources[0]["path"]).unlink()
    assert mix(sources, again=True) == 0
    assert mix.directory.manifest.stat().st_mtime_ns == written
    mix.file("a.jsonl", "a", 50)
    sources[1]["weight"] = 2
    assert mix(sources, again=True) == 0
    assert sum(map(len, mix.rows())) == 75
    assert not list(mix.directory.dataset.glob("*.tmp"))


def test_every_kind_of_source_in_one_mix_with_its_own_secrets(
    mix: Mixer, tmp_path: Path, postgresql_server: PostgreSQL, uid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("go") is None:
        pytest.skip("Go is not installed: it builds the S3 server")
    from tests.support.registry import serving

    url = postgresql_server.new_database()
    _fill(url)
    with closing(sqlite3.connect(tmp_path / "rows.db")) as database, database:
        database.execute("create table pairs as select 'l1' as prompt, 'c' as completion")
    content = lines(*({"prompt": f"r{number}", "completion": "c"} for number in range(4)))
    with hub() as hub_server, s3() as store, serving(f"sqlite:///{tmp_path}/registry.db") as registry:
        add_repository(hub_server)
        store.create_bucket("rows")
        store.put("rows", "a.jsonl", lines({"prompt": "s1", "completion": "c"}))
        for name, value in {
            "MIX_1_DATASET_URL": url,
            "MIX_2_DATASET_URL": f"sqlite:///{tmp_path}/rows.db",
            "MIX_3_HF_TOKEN": "hf_own",
            "HF_TOKEN": "hf_of_another",
            "HF_ENDPOINT": hub_server.endpoint,
            "HF_HOME": str(tmp_path / "cache"),
            **{f"MIX_4_{name}": value for name, value in store.environment.items()},
        }.items():
            monkeypatch.setenv(name, value)
        record_run(registry, content, uid)
        sources: list[Entry] = [
            {"source": "registry"},
            {"source": "sql", "query": "select prompt, completion from pairs"},
            {"source": "sql", "query": "select * from pairs", "name": "local"},
            {"source": "hub", "repository": "o/d"},
            {"source": "objectStore", "uri": "s3://rows/*.jsonl", "endpoint": store.endpoint},
            mix.file("v.jsonl", "v", 1),
        ]
        flags = [f"--registry-url={registry}", "--namespace=ml", f"--run-uid={uid}", ALL]
        assert mix(sources, *flags) == 0
    names = [(source["name"], source["rows"], source.get("version")) for source in mix.manifest["sources"]]
    assert names == [
        ("tickets/1", 4, 1),
        ("query result", 2, None),
        ("local", 1, None),
        ("o/d", 1, None),
        ("*.jsonl", 1, None),
        ("v.jsonl", 1, None),
    ]
    assert mix.manifest["version"] == mix.said["dataset"]["version"] == 1
    found = mix.manifest["source"]["found"]
    assert found[0]["sha256"] == hashlib.sha256(content).hexdigest()
    assert len(found[3]["commit"]) == 40
    assert "finetune" not in json.dumps(mix.manifest["source"]["mix"])  # no database, with its user, in the request
    assert mix.rows()[0][4]["file"] == "mix[1] (query result)"


def test_a_secret_that_is_refused_names_the_source(mix: Mixer, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub() as server:
        add_repository(server)
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.setenv("HF_HOME", str(mix.folder / "cache"))
        monkeypatch.setenv("MIX_0_HF_TOKEN", "hf_own")  # the other source's
        assert mix([mix.file("a.jsonl", "a", 1), {"source": "hub", "repository": "o/d"}]) in (5, 10)
    assert mix.message.startswith("mix[1] (o/d): dataset o/d on ")


def add_repository(server: Hub) -> None:
    repository = server.repositories["o/d"] = Repository(token="hf_own")
    repository.commit({"train.jsonl": lines({"prompt": "h1", "completion": "c"})})


def record_run(registry: str, content: bytes, uid: str) -> None:
    """Push the dataset `tickets`, and record a run that reads it."""
    from tests.support.registry import run_document

    base = f"{registry}/api/v1/namespaces/ml"
    assert httpx.post(f"{base}/datasets/tickets/versions", content=content).status_code == 201
    document = run_document(datasetName="tickets")
    assert httpx.put(f"{base}/runs/{uid}", json=document).is_success


def _fill(url: str) -> None:
    import psycopg

    where = url.replace("postgresql://finetune@/", "postgresql:///") + "&user=finetune"
    with psycopg.connect(where, autocommit=True) as connection:
        connection.execute(
            "create table pairs as select 'q' || i as prompt, 'c' as completion from generate_series(1, 2) i"
        )
