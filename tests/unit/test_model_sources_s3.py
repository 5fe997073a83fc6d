"""The object store against a real server of the S3 protocol: globs, formats, credentials, changes and interruptions."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from model.data.sources import ObjectStoreSource, SourceInterruptedError
from model.exits import FailureError
from tests.support.s3 import S3, s3


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    if shutil.which("go") is None:
        pytest.skip("Go is not installed: it builds the S3 server")
    with s3() as running:
        yield running


@pytest.fixture
def bucket(server: S3) -> str:
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    server.create_bucket(name)
    return name


def lines(*texts: str) -> bytes:
    return "".join(json.dumps({"prompt": text}) + "\n" for text in texts).encode()


def source(server: S3, uri: str, environment: Mapping[str, str] | None = None) -> ObjectStoreSource:
    return ObjectStoreSource(uri, server.endpoint, server.environment if environment is None else environment)


def rows(found: ObjectStoreSource) -> list[tuple[str, int, Any]]:
    return [(record.file, record.number, record.value["prompt"]) for record in found.records()]


def failure(found: ObjectStoreSource) -> FailureError:
    with pytest.raises(FailureError) as caught:
        list(found.records())
    return caught.value


def parquet(*texts: str) -> bytes:
    import pyarrow as pa
    from pyarrow.parquet import write_table

    sink = io.BytesIO()
    write_table(pa.table({"prompt": list(texts)}), sink)
    return sink.getvalue()


def test_objects_that_describe_others_are_passed_over(server: S3, bucket: str) -> None:
    for name in ("dataset_info.json", "meta.json", "_SUCCESS", "_common_metadata", ".part-0.jsonl.crc"):
        server.put(bucket, f"rows/{name}", b'{"splits": {"train": {}}}')
    server.put(bucket, "rows/part-0.jsonl", lines("1"))
    server.put(bucket, "rows/part-1.jsonl.xz", b"x")
    for uri, unread in (("rows/", ["part-1.jsonl.xz"]), ("rows/*.js*[ln]", [])):
        found = source(server, f"s3://{bucket}/{uri}")
        assert rows(found) == [("", 1, "1")]
        assert found.passed_over == ["dataset_info.json", "meta.json", *unread]


def test_objects_of_every_format_in_the_order_of_their_keys(server: S3, bucket: str) -> None:
    server.put(bucket, "rows/c.parquet", parquet("c1", "c2"))
    server.put(bucket, "rows/b.jsonl.gz", gzip.compress(lines("b1")))
    server.put(bucket, "rows/a b+\u00fc.csv", b"prompt\na1\n")
    server.put(bucket, "rows/deep/d.json", b'[{"prompt": "d1"}]')
    server.put(bucket, "other.jsonl", lines("other"))
    expected = [("a b+\u00fc.csv", 1, "a1"), ("b.jsonl.gz", 1, "b1"), ("c.parquet", 1, "c1"), ("c.parquet", 2, "c2")]
    assert rows(source(server, f"s3://{bucket}/rows/*")) == expected
    assert rows(source(server, f"s3://{bucket}/rows/")) == expected
    assert rows(source(server, f"s3://{bucket}/rows/**")) == [*expected, ("deep/d.json", 1, "d1")]
    assert rows(source(server, f"s3://{bucket}/*/deep/*.json")) == [("", 1, "d1")]
    assert rows(source(server, f"s3://{bucket}/other.jsonl")) == [("", 1, "other")]


def test_the_description_follows_the_objects_and_holds_no_secret(server: S3, bucket: str) -> None:
    server.put(bucket, "a.jsonl", lines("1"))
    uri = f"s3://{bucket}/*.jsonl"
    first = source(server, uri).description()
    assert first == source(server, uri).description()
    assert (first["objects"], first["bytes"], first["uri"]) == (1, len(lines("1")), uri)
    server.put(bucket, "b.jsonl", lines("2"))
    assert source(server, uri).description() != first
    assert server.secret_key not in json.dumps(first) + repr(source(server, uri))
    assert source(server, uri).request() == {"type": "objectStore", "uri": uri, "endpoint": server.endpoint}


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/rows/trian.jsonl", "does not exist: did you mean train.jsonl? (in s3://{bucket}/rows/)"),
        ("/rows/*.csv", "no object matches s3://{bucket}/rows/*.csv: "),
        ("/none/x/*.csv", "there is rows (in s3://{bucket}/)"),
        ("/rows/deep/", "holds no data files"),
        ("-missing/x.jsonl", "there is no bucket {bucket}-missing"),
        ("-missing/*", "there is no bucket {bucket}-missing"),
    ],
)
def test_what_is_not_there_is_named_with_the_nearest(server: S3, bucket: str, path: str, said: str) -> None:
    server.put(bucket, "rows/train.jsonl", lines("1"))
    found = failure(source(server, f"s3://{bucket}{path}"))
    assert (found.code, found.reason) == (10, "DatasetUnavailable")
    assert said.format(bucket=bucket) in found.message


def test_a_prefix_of_several_splits_is_not_mixed(server: S3, bucket: str) -> None:
    server.put(bucket, "train.jsonl", lines("1"))
    server.put(bucket, "test.jsonl", lines("2"))
    found = failure(source(server, f"s3://{bucket}/"))
    assert found.code == 2
    assert f"(test, train): name those to train on, for example s3://{bucket}/train.jsonl" in found.message


@pytest.mark.parametrize("key", ["/a.jsonl", "/*.jsonl", "/"])
@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong-secret"}, "check the access key, its secret and what it may read"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "check the access key"),
        ({"AWS_ACCESS_KEY_ID": ""}, "no AWS_ACCESS_KEY_ID was given: name a credentials Secret"),
    ],
)
def test_credentials_that_are_refused(server: S3, bucket: str, key: str, change: dict[str, str], hint: str) -> None:
    server.put(bucket, "a.jsonl", lines("1"))
    found = failure(source(server, f"s3://{bucket}{key}", {**server.environment, **change}))
    assert (found.code, found.reason) == (5, "AccessDenied")
    assert hint in found.message
    assert "wrong-secret" not in found.message
    assert server.secret_key not in found.message


@pytest.mark.parametrize("uri", ["http://bucket/key", "s3://", "s3://bucket", "s3:///key", "bucket/key"])
def test_an_uri_that_is_none(server: S3, uri: str) -> None:
    found = failure(source(server, uri))
    assert found.code == 2
    assert "must be s3://<bucket>/<key>" in found.message


@pytest.mark.parametrize("uri", ["s3://key:secret@bucket/a.jsonl", "s3://key:sec/ret@bucket/a.jsonl"])
def test_credentials_in_an_uri_are_refused_and_not_repeated(server: S3, uri: str) -> None:
    found = failure(source(server, uri))
    assert found.code == 2
    assert found.message == "--uri holds credentials: give them as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"


@pytest.mark.parametrize("endpoint", ["localhost:9000", "ftp://host", "http://key:secret@host"])
def test_an_endpoint_that_is_none(server: S3, endpoint: str) -> None:
    found = failure(ObjectStoreSource("s3://bucket/key", endpoint, server.environment))
    assert found.code == 2
    assert "secret" not in found.message


def test_a_broken_object_is_named(server: S3, bucket: str) -> None:
    server.put(bucket, "a.parquet", parquet("1")[:-20])
    found = failure(source(server, f"s3://{bucket}/a.parquet"))
    assert (found.code, found.message) == (3, "a.parquet is cut off; copy it again")


def test_an_object_that_changes_under_the_reader_is_read_again(server: S3, bucket: str) -> None:
    server.put(bucket, "a.jsonl", lines("1", "2"))
    found = source(server, f"s3://{bucket}/a.jsonl")
    records = found.records()
    next(records)
    server.put(bucket, "a.jsonl", lines("3", "4"))
    with pytest.raises(SourceInterruptedError, match="changed while it was read"):
        list(records)
    assert rows(found) == [("", 1, "3"), ("", 2, "4")]


def test_an_object_that_appears_under_the_reader_is_not_missed(server: S3, bucket: str) -> None:
    server.put(bucket, "b.jsonl", lines("1"))
    found = source(server, f"s3://{bucket}/*.jsonl")
    records = found.records()
    next(records)
    server.put(bucket, "a.jsonl", lines("0"))
    with pytest.raises(SourceInterruptedError, match="changed while they were read"):
        list(records)
    assert [row[0] for row in rows(found)] == ["a.jsonl", "b.jsonl"]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_server_that_goes_away_in_the_middle(form: str) -> None:
    if shutil.which("go") is None:
        pytest.skip("Go is not installed: it builds the S3 server")
    with s3() as own:
        own.create_bucket("data")
        texts = [f"{number} {uuid.uuid4()}" * 100 for number in range(3000)]
        own.put("data", f"a.{form}", lines(*texts) if form == "jsonl" else parquet(*texts))
        records = source(own, f"s3://data/a.{form}").records()
        next(records)
        own.process.kill()
        with pytest.raises(SourceInterruptedError, match="NETWORK_CONNECTION"):
            list(records)


def test_a_server_that_is_not_there(server: S3) -> None:
    found = ObjectStoreSource("s3://data/a.jsonl", "http://127.0.0.1:9", server.environment)
    with pytest.raises(SourceInterruptedError, match=r"cannot read s3://data/a\.jsonl from http://127\.0\.0\.1:9"):
        found.description()


def test_a_newline_after_a_key_is_not_part_of_it(server: S3, bucket: str) -> None:
    """Secrets that are made of files end with one."""
    server.put(bucket, "rows.jsonl", lines("a"))
    environment = {name: f"{value}\n" for name, value in server.environment.items()}
    assert rows(source(server, f"s3://{bucket}/rows.jsonl", environment)) == [("", 1, "a")]
