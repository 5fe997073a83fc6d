"""Datasets that are wrong as files, as JSON, or as prompts and completions; and flags that make no sense."""

from __future__ import annotations

import json

from tests.unit.corpus.cases import BOM, PAIR, Case, rows, zstd

CASES = (
    Case("empty file", b"", "train.jsonl has no rows: check that it is the right one"),
    Case("only blank lines", b"\n \n\r\n", "train.jsonl has no rows: check that it is the right one"),
    Case("only a byte order mark", b"\xef\xbb\xbf\n", "train.jsonl has no rows: check that it is the right one"),
    Case(
        "missing comma",
        rows(PAIR) + b'{"prompt": "a" "completion": "b"}\n',
        "train.jsonl row 2: not valid JSON: Expecting ',' delimiter at character 16",
        row=2,
    ),
    Case(
        "single quotes",
        b"{'prompt': 'a', 'completion': 'b'}\n",
        "train.jsonl row 1: not valid JSON: Expecting property name enclosed in double quotes at character 2: "
        "this is Python's way to write it, use json.dumps",
        row=1,
    ),
    Case(
        "a comma after each row",
        b'{"prompt": "a", "completion": "b"},\n{"prompt": "c", "completion": "d"},\n',
        "train.jsonl has 2 problems in 2 rows: row 1: not valid JSON: Extra data at character 35: leave out the comma "
        "after the row; row 2: not valid JSON: Extra data at character 35: leave out the comma after the row",
        row=1,
    ),
    Case(
        "an old Macintosh's line ends",
        b'{"prompt": "a", "completion": "b"}\r{"prompt": "c", "completion": "d"}\r',
        "train.jsonl row 1: not valid JSON: Extra data at character 36: end each row with a line feed",
        row=1,
    ),
    Case(
        "cut off in a string",
        rows(PAIR) + b'{"prompt": "a", "comple',
        "train.jsonl row 2: not valid JSON: Unterminated string starting at character 17",
        row=2,
    ),
    Case(
        "two values on a line",
        b'{"prompt": "a", "completion": "b"} {"prompt": "c", "completion": "d"}\n',
        "train.jsonl row 1: not valid JSON: Extra data at character 36: end each row with a line feed",
        row=1,
    ),
    Case(
        "no json at all",
        b"prompt: a\n",
        "train.jsonl row 1: not valid JSON: Expecting value at character 1: an object goes from { to }",
        row=1,
    ),
    Case(
        "no json at all, ending with a quote",
        b"say 'a'",
        "train.jsonl row 1: not valid JSON: Expecting value at character 1: an object goes from { to }",
        row=1,
    ),
    Case(
        "missing colon",
        b'{"prompt" {"a": 1}}\n',
        "train.jsonl row 1: not valid JSON: Expecting ':' delimiter at character 11",
        row=1,
    ),
    Case(
        "a quote after a value",
        b'{"prompt": "a"\', "completion": "b"}\n',
        "train.jsonl row 1: not valid JSON: Expecting ',' delimiter at character 15",
        row=1,
    ),
    Case(
        "fields in capitals",
        b"Prompt,Answer\na,b\nc,d\n",
        "train.csv row 1: has Prompt, Answer, but SFT needs prompt and completion, or messages, or conversations, or "
        "instruction and output, or text: map the columns with --column (columns in a TrainingRun), perhaps "
        "prompt=Prompt and completion=Answer (also row 2)",
        file="train.csv",
        row=1,
    ),
    Case(
        "Windows-1252 in CSV",
        "prompt,completion\na,é\nb,ü\n".encode("cp1252"),
        "train.csv row 1: not UTF-8: byte 0xe9 in completion: store the file as UTF-8, for example with `iconv -f "
        "WINDOWS-1252 -t UTF-8` (also row 2)",
        file="train.csv",
        row=1,
    ),
    Case(
        "rows of other fields",
        rows(PAIR, {"question": "a"}, {"question": "b"}),
        "train.jsonl row 2: has question, but row 1 has prompt and completion: use the same fields in all rows (also "
        "row 3)",
        row=2,
    ),
    Case("NaN", b'{"prompt": "a", "completion": NaN}\n', "train.jsonl row 1: completion: must not be null", row=1),
    Case(
        "minus infinity",
        b'{"prompt": -Infinity, "completion": "b"}\n',
        "train.jsonl row 1: prompt: must be a string, is an infinite number",
        row=1,
    ),
    Case(
        "NaN in a tool",
        b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], '
        b'"tools": [{"name": "f", "parameters": {"a": NaN}}]}\n',
        "train.jsonl row 1: tools[0]: holds what JSON cannot: NaN, an infinite number, a date or bytes",
        row=1,
    ),
    Case(
        "two files with byte order marks, joined",
        BOM + rows(PAIR) + BOM + rows(PAIR, {"prompt": "c"}),
        "train.jsonl has 2 problems in 2 rows: row 2: begins with a byte order mark, as if two files had been "
        "joined: remove it, as `sed -i 's/^\\xef\\xbb\\xbf//'` does; row 3: completion: is missing",
        row=2,
    ),
    Case(
        "two arrays with byte order marks, joined",
        (BOM + b'[{"prompt": "a", "completion": "b"}]\n') * 2,
        "rows.json goes on with a byte order mark after the array's end, as if two files had been joined: keep them "
        "apart, or write one array",
        file="rows.json",
    ),
    Case(
        "two tables with byte order marks, joined",
        (BOM + b"prompt,completion\na,b\n") * 2,
        "rows.csv row 2: begins with a byte order mark, as if two files had been joined: remove it, as `sed -i "
        "'s/^\\xef\\xbb\\xbf//'` does",
        row=2,
        file="rows.csv",
    ),
    Case(
        "UTF-16 with a byte order mark",
        rows(PAIR).decode().encode("utf-16"),
        "train.jsonl is UTF-16 text: convert it with `iconv -f UTF-16 -t UTF-8`",
    ),
    Case(
        "UTF-16 without a byte order mark",
        rows(PAIR).decode().encode("utf-16-le"),
        "train.jsonl is UTF-16 text: convert it with `iconv -f UTF-16 -t UTF-8`",
    ),
    Case(
        "a table in UTF-16",
        "prompt;completion\na;b\n".encode("utf-16"),
        "rows.csv is UTF-16 text: convert it with `iconv -f UTF-16 -t UTF-8`",
        file="rows.csv",
    ),
    Case(
        "a table with a filled column that has no name",
        b"prompt;completion;;\na;b;;\nc;d;;x\n",
        "rows.csv row 2: has 4 fields, but the header names 2: quote fields that hold semicolons",
        row=2,
        file="rows.csv",
    ),
    Case(
        "a table with too few fields",
        b"prompt;completion\na\n",
        "rows.csv row 1: has 1 field, but the header names 2: write empty ones, too",
        row=1,
        file="rows.csv",
    ),
    Case(
        "a table of empty rows",
        b"prompt;completion\n;\n;\n",
        "rows.csv has no rows: check that it is the right one",
        file="rows.csv",
    ),
    Case(
        "a table that says another separator",
        b"sep=;\nprompt,completion\na,b\n",
        "rows.csv row 1: has prompt,completion, but SFT needs prompt and completion, or messages, or conversations, "
        "or instruction and output, or text: map the columns with --column (columns in a TrainingRun)",
        row=1,
        file="rows.csv",
    ),
    Case(
        "zstd under the name of JSON lines",
        zstd(rows(PAIR)),
        "train.jsonl is compressed with zstd: name it train.jsonl.zst, or decompress it",
    ),
    Case(
        "no zstd",
        rows(PAIR),
        'rows.jsonl.zst is not zstd although its name says so: it begins with \'{"prompt": "a", "completion": '
        '"b"}\': name it after what it is',
        file="rows.jsonl.zst",
    ),
    Case(
        "zstd, cut off",
        zstd(rows(PAIR) * 99)[:-9],
        "rows.jsonl.zst is cut off: the compressed data ends too early; copy it again",
        file="rows.jsonl.zst",
    ),
    Case(
        "zstd, damaged",
        zstd(rows(PAIR) * 99)[:12] + bytes(40),
        "rows.jsonl.zst is cut off: the compressed data ends too early; copy it again",
        file="rows.jsonl.zst",
    ),
    Case(
        "xz",
        b"\xfd7zXZ\x00" + bytes(20),
        "rows.jsonl.xz is compressed with xz: decompress it, or compress it with gzip or zstd",
        file="rows.jsonl.xz",
    ),
    Case(
        "no Arrow file",
        rows(PAIR),
        'rows.arrow is no Arrow file: it begins with \'{"prompt": "a", "completion": "b"}\': copy it again, or name '
        "it after what it is",
        file="rows.arrow",
    ),
    Case(
        "an Arrow file, cut off",
        b"\xff\xff\xff\xff" + bytes([16, 0, 0, 0]) + bytes(4),
        "rows.arrow is cut off or damaged (Expected to read 16 metadata bytes, but only read 4); copy it again",
        file="rows.arrow",
    ),
    Case(
        "a number beyond floats",
        b'{"prompt": "a", "completion": "b", "score": 1e999}\n',
        "train.jsonl row 1: holds 1e999, which is too large for a number",
        row=1,
    ),
    Case(
        "a number of 5,000 digits",
        b'{"prompt": "a", "completion": "b", "id": ' + b"1" * 5000 + b"}\n",
        "train.jsonl row 1: holds a number of 5000 digits",
        row=1,
    ),
    Case(
        "a key twice",
        b'{"prompt": "a", "completion": "b", "completion": "c"}\n',
        "train.jsonl row 1: completion: stands twice in one object, which of the two is meant?",
        row=1,
    ),
    Case(
        "nested too deep",
        b'{"prompt": "a", "completion": "b", "x": ' + b"[" * 200 + b"]" * 200 + b"}\n",
        "train.jsonl row 1: nests lists and objects more than 100 deep",
        row=1,
    ),
    Case(
        "a line longer than 16 MiB",
        b'{"prompt": "a", "completion": "' + b"x" * (16 << 20) + b'"}\n' + rows(PAIR),
        "train.jsonl row 1: is longer than 16 MiB: shorten it, or write several rows",
        row=1,
    ),
    Case(
        "latin-1",
        '{"prompt": "a", "completion": "caf\xe9"}\n'.encode("latin-1"),
        "train.jsonl row 1: not UTF-8: byte 0xe9 at byte 35: store the file as UTF-8, for example with "
        "`iconv -f WINDOWS-1252 -t UTF-8`",
        row=1,
    ),
    Case(
        "half a surrogate pair",
        b'{"prompt": "a\\ud83d", "completion": "b"}\n',
        "train.jsonl row 1: prompt: holds half of a surrogate pair, which is no character",
        row=1,
    ),
    Case(
        "a NUL character",
        b'{"prompt": "a", "completion": "b\\u0000"}\n',
        "train.jsonl row 1: completion: holds a NUL character, at character 2",
        row=1,
    ),
    Case(
        "a raw control character",
        b'{"prompt": "a\x01", "completion": "b"}\n',
        "train.jsonl row 1: not valid JSON: Invalid control character at character 14",
        row=1,
    ),
    Case(
        "an array on a line", rows(PAIR) + b'["a", "b"]\n', "train.jsonl row 2: must be a JSON object, is a list", row=2
    ),
    Case("a string on a line", rows(PAIR) + b'"a"\n', "train.jsonl row 2: must be a JSON object, is a string", row=2),
    Case("null on a line", rows(PAIR) + b"null\n", "train.jsonl row 2: must be a JSON object, is null", row=2),
    Case("no completion", rows(PAIR, {"prompt": "a"}), "train.jsonl row 2: completion: is missing", row=2),
    Case(
        "gzip that is none",
        b"\x1f\x8b",
        "train.jsonl.gz is cut off: the compressed data ends too early; copy it again",
        file="train.jsonl.gz",
    ),
    Case(
        "UTF-16",
        '{"prompt": "a", "completion": "b"}\n'.encode("utf-16"),
        "train.jsonl is UTF-16 text: convert it with `iconv -f UTF-16 -t UTF-8`",
    ),
    Case(
        "a pretty-printed object",
        json.dumps(PAIR, indent=2).encode(),
        "train.jsonl holds a JSON object over several lines: write one object a line",
    ),
    Case(
        "a web page",
        b"<!DOCTYPE html><html>Please log in</html>",
        "train.jsonl is an HTML page, probably an error or login page in place of the data: check where "
        "it was fetched from",
    ),
    Case(
        "a JSON object in a .json file",
        json.dumps({"data": [PAIR]}).encode(),
        "train.json row 1: has data, but SFT needs prompt and completion, or messages, or conversations, "
        "or instruction and output, or text: map the columns with --column (columns in a TrainingRun); or, if "
        "data holds the rows, write these alone, as `jq -c '.[\"data\"][]'` does",
        file="train.json",
        row=1,
    ),
    Case(
        "a JSON object with rows under a key that a shell or jq would take apart",
        json.dumps({"Kim's rows": [PAIR]}).encode(),
        "train.json row 1: has Kim's rows, but SFT needs prompt and completion, or messages, or conversations, or "
        "instruction and output, or text: map the columns with --column (columns in a TrainingRun); or, if Kim's rows "
        "holds the rows, write these alone, as `jq -c '.[\"Kim\\u0027s rows\"][]'` does",
        file="train.json",
        row=1,
    ),
    Case(
        "rows under a key as long as a text",
        rows({"x" * 100_000: [PAIR]}),
        f"train.jsonl row 1: has {'x' * 40}, but SFT needs prompt and completion, or messages, or conversations, or "
        "instruction and output, or text: map the columns with --column (columns in a TrainingRun)",
        row=1,
    ),
    Case(
        "a comma before the array's end",
        b'[{"prompt": "a", "completion": "b"},]',
        "train.json row 2: is missing: leave out the comma before it",
        file="train.json",
        row=2,
    ),
    Case(
        "CSV with an old Macintosh's line ends",
        b"prompt,completion\ra,b\r",
        r"train.csv ends a line with a carriage return alone: convert the file with `tr '\r' '\n'`, or quote the field",
        file="train.csv",
    ),
    Case(
        "CSV: a carriage return in a row",
        b"prompt,completion\na,b\rc\nd,e\n",
        r"train.csv row 1: ends a line with a carriage return alone: convert the file with `tr '\r' '\n'`, or quote "
        "the field",
        file="train.csv",
        row=1,
    ),
    Case(
        "CSV: a header without end",
        b'prompt,"completion\n' + (b"x" * (1 << 20) + b"\n") * 17,
        "train.csv has a header that cannot be read: is longer than 16 MiB",
        file="train.csv",
    ),
    Case(
        "Windows-1252 in CSV, beside a character that replaces another",
        b"prompt,completion\n\xef\xbf\xbd,\xe9\n",
        "train.csv row 1: not UTF-8: byte 0xe9 in completion: store the file as UTF-8, for example with `iconv -f "
        "WINDOWS-1252 -t UTF-8`",
        file="train.csv",
        row=1,
    ),
    Case(
        "an array that is cut off",
        b'[{"prompt": "a", "completion": "b"}, {"prompt": "c"',
        "train.json is cut off after row 1; copy it again",
        file="train.json",
    ),
    Case(
        "CSV: an empty cell",
        b"prompt,completion\na,b\nc,\n",
        "train.csv row 2: completion: is empty",
        file="train.csv",
        row=2,
    ),
    Case(
        "CSV: no such column",
        b"question,answer\na,b\n",
        "train.csv row 1: has question, answer, but SFT needs prompt and completion, or messages, or "
        "conversations, or instruction and output, or text: map the columns with --column (columns in a "
        "TrainingRun), perhaps prompt=question and "
        "completion=answer",
        file="train.csv",
        row=1,
    ),
    Case(
        "CSV: a row too long",
        b"prompt,completion\na,b\nc,d,e\n",
        "train.csv row 2: has 3 fields, but the header names 2: quote fields that hold commas",
        file="train.csv",
        row=2,
    ),
    Case(
        "CSV: messages that are no JSON",
        b"messages\nhello\n",
        "train.csv row 1: messages: must be a list, is a string",
        file="train.csv",
        row=1,
    ),
    Case(
        "no rows to train on: flags",
        rows(PAIR),
        "--column=chosen=...: no row for --method=SFT has that field",
        flags=("--method=SFT", "--column=chosen=x"),
        code=2,
    ),
    Case(
        "a column for nothing",
        rows(PAIR),
        "--column: no row has all of messages, prompt, map the fields of one shape",
        flags=("--column=prompt=a", "--column=messages=b"),
        code=2,
    ),
    Case(
        "unknown field mapped",
        rows(PAIR),
        "--column=question=...: no such field, use one of prompt, completion, system, history, tools, "
        "reasoning_content, chat_template_kwargs, messages, conversations, instruction, output, input, text, chosen, "
        "rejected, label",
        flags=("--column=question=prompt",),
        code=2,
    ),
    Case("unknown method", rows(PAIR), "--method=RL: must be 'SFT', 'DPO' or 'KTO'", flags=("--method=RL",), code=2),
    Case(
        "query for a file",
        rows(PAIR),
        "--evaluation-percent=90: must be less than or equal to 50; --query: is for --source=sql only",
        flags=("--query=select 1", "--evaluation-percent=90", "--evaluation-max-rows=3"),
        code=2,
    ),
)
