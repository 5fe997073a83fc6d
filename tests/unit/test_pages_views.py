"""What the pages make of stored documents: texts, curves, settings, rows. Pure functions, by tables."""

# ruff: noqa: RUF001 - dashes and minus signs as the pages have them

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from finetune.api.conditions import Condition
from finetune.api.registry import Run
from finetune.registry.errors import Invalid
from finetune.registry.pages import text
from finetune.registry.pages.charts import Line, between, draw, sparkline
from finetune.registry.pages.forms import MAX_FIELDS
from finetune.registry.pages.queries import Part
from finetune.registry.pages.routes.actions import read_tags
from finetune.registry.pages.routes.sessions import local_path
from finetune.registry.pages.views.compare import comparison, table
from finetune.registry.pages.views.datasets import difference, lengths_of, row_view
from finetune.registry.pages.views.experiments import parallel, ranked
from finetune.registry.pages.views.experiments import table as ranking_table
from finetune.registry.pages.views.run import next_name, run_view, tags_text
from finetune.registry.pages.views.runs import filter_of
from finetune.registry.pages.views.settings import defaults, differences, settings_of

BIDI = "\u202e\u2066\u200f"


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("plain – ä 漢字 👩‍🚀\ttab\nline", "plain – ä 漢字 👩‍🚀\ttab\nline"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]8;;http://evil\x07link\x1b]8;;\x07", "link"),
        ("\x1b]0;title", ""),
        (f"a{BIDI}b", "ab"),
        ("a\x00b\x08c\x9bd\x7f", "abcd"),
        ("a\r\nb\rc\u2028d\x85e", "a\nb\nc\nd\ne"),
        ("zero\u200bwidth\ufeff", "zerowidth"),
        ("tag\U000e0041", "tag"),
        ("half \ud800", "half \ufffd"),
        ("<script>{{ 7 * 7 }}</script>", "<script>{{ 7 * 7 }}</script>"),
    ],
)
def test_nothing_is_shown_that_would_show_the_rest_as_something_else(written: str, shown: str) -> None:
    assert text.clean(written) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (float("inf"), "–"),
        (0, "0"),
        (1240, "1,240"),
        (1.41213, "1.412"),
        (0.0002, "2.00e-4"),
        (12345.678, "12,346"),
        (-0.5, "-0.5000"),
        (1e300, "1.00e+300"),
    ],
)
def test_numbers_have_the_digits_that_help(value: float | None, shown: str) -> None:
    assert text.number(value) == shown


def test_sizes_times_and_shares_are_words_of_people() -> None:
    assert [text.size(count) for count in (None, 0, 999, 1000, 41_000_000, 999_600)] == [
        "–",
        "0 B",
        "999 B",
        "1 kB",
        "41 MB",
        "1 MB",
    ]
    assert [text.duration(each) for each in (None, 0, 59.6, 7800, 86400, 90000)] == [
        "–",
        "0s",
        "1m",
        "2h 10m",
        "1d",
        "1d 1h",
    ]
    assert text.percent(text.change(1.9, 2.77)) == "−31 %"
    assert text.percent(text.change(9.12, 2.05)) == "+345 %"
    assert text.percent(text.change(1.0, 0.0)) == "–"
    now = datetime(2026, 11, 28, tzinfo=UTC)
    assert text.age(now - timedelta(hours=3, minutes=7), now) == "3h"


def part(step: int, value: float, high: float | None = None) -> Part:
    return Part(step, value, value if high is None else high, step)


def test_a_curve_keeps_its_spike_and_tells_itself_in_words() -> None:
    loss = Line(label="training loss", metric="loss", run="u", parts=[part(1, 2.0), part(50, 1.5, 9.0), part(99, 1.0)])
    chart = draw("Loss", [loss], base=2.5, marks=[50, 500])
    assert chart is not None
    ys = [float(pair.split(",")[1]) for pair in chart.lines[0].points.split()]
    assert min(ys) == 8.0  # the spike is at the top
    assert max(ys) == 196.0  # and the end at the bottom
    assert chart.caption == "training loss fell from 2 to 1 by step 99; the base model's is 2.500."
    assert [mark.step for mark in chart.marks] == [50]
    assert chart.rows == (("1", "2"), ("50", "5.250"), ("99", "1"))
    assert chart.base_at == pytest.approx(8 + 188 * 6.5 / 8, abs=0.1)


@pytest.mark.parametrize(
    "values", [[1.0, 1.0], [-1.7e308, 1.7e308], [0.0, 5e-324], [1e16, 1e16 + 2], [3.0], [-5.0, -4.0]]
)
def test_any_finite_values_can_be_drawn(values: list[float]) -> None:
    parts = [part(step, value) for step, value in enumerate(values, start=1)]
    chart = draw("x", [Line(label="x", metric="x", run="u", parts=parts)])
    assert chart is not None
    for pair in chart.lines[0].points.split() + sparkline(parts).split():
        x, y = map(float, pair.split(","))
        assert 0 <= x <= 640
        assert 0 <= y <= 220
    assert 1 <= len(chart.y_ticks) <= 7


def test_a_growing_number_is_known_between_its_steps() -> None:
    assert between([1, 2, 5, 10, 15, 99], [2, 10, 20], [200.0, 1000.0, 2500.0]) == [200, 200, 500, 1000, 1750, 2500]
    assert between([], [1], [1.0]) == []


def test_the_time_before_the_first_step_is_told_event_by_event() -> None:
    """Conditions say what the cluster did, and the trainer's document what the trainer did."""

    def at(seconds: int) -> str:
        return f"2026-11-28T09:{seconds // 60:02}:{seconds % 60:02}Z"

    outcome = {"phase": "Succeeded", "startTime": at(2), "completionTime": at(600), "ended": True}
    run = Run.model_validate({
        "uid": "u", "name": "n", "experiment": "e", "method": "SFT", "spec": {}, "outcome": outcome,
        "createdTime": at(0),
    })  # fmt: skip
    conditions = [
        Condition(type=type_, status=status, reason="R", last_transition_time=datetime.fromisoformat(at(seconds)))
        for type_, status, seconds in (
            ("Accepted", "True", 1),
            ("DatasetReady", "True", 54),
            ("Suspended", "False", 3),
            ("Succeeded", "Unknown", 4),
            ("Stalled", "True", 5),
        )
    ]
    result = {"timings": {"startTime": at(60), "modelLoadedTime": at(123), "firstStepTime": at(126), "x": [1]}}
    view = run_view("ml", run, attempts=[], result=result, row_text="", conditions=conditions)
    assert [(fact.name, fact.value.rpartition(", ")[2]) for fact in view.times[1:]] == [
        ("accepted", "1s later"),
        ("job started", "1s later"),
        ("rows exported", "52s later"),
        ("trainer started", "6s later"),
        ("model loaded", "1m 3s later"),
        ("first step", "3s later"),
        ("ended", "7m 54s later"),
    ]
    assert [(each.type, each.kind) for each in view.conditions] == [
        ("Accepted", "good"),
        ("DatasetReady", "good"),
        ("Suspended", "idle"),
        ("Succeeded", "idle"),
        ("Stalled", "bad"),
    ]
    nothing = run_view("ml", run, attempts=[], result={"timings": "x"}, row_text="")
    assert [fact.name for fact in nothing.times] == ["recorded", "job started", "ended"]


def test_a_live_chart_has_a_place_for_lines_that_get_their_points_later() -> None:
    lines = [
        Line(label=name, metric=name, run="u", parts=parts, place=place)
        for place, (name, parts) in enumerate([("evaluationLoss", []), ("loss", [part(1, 2.0), part(2, 1.0)])])
    ]
    for is_live, places in ((True, [0, 1]), (False, [1])):
        chart = draw("Loss", lines, is_live=is_live)
        assert chart is not None
        assert chart.metrics == "evaluationLoss,loss"  # colours go by the place among them
        assert [line.place for line in chart.lines] == places
        assert [tick.text for tick in chart.x_ticks] == ["1", "2"]


def test_an_experiment_is_drawn_from_setting_to_setting_and_ranked_as_csv() -> None:
    def run(name: str, loss: str | None, rate: str, rank: int) -> Run:
        outcome = {"phase": "Succeeded" if loss else "Failed", "evaluationLoss": loss, "ended": True}
        spec = {"training": {"learningRate": rate, "seed": rank}, "lora": {"rank": rank}, "method": "=1+1"}
        return Run.model_validate(
            {"uid": name, "name": name, "experiment": "e", "method": "SFT", "spec": spec, "outcome": outcome}
            | {"createdTime": "2026-11-28T00:00:00Z"}
        )

    runs = [
        run("a", "2.0", "1e-4", 8),
        run("b", None, "1e-4", 8),
        run("c", "1.0", "2e-4", 16),
        run("d", "1.5", "1e-4", 16),
    ]
    drawn = parallel(ranked(runs))
    assert drawn is not None
    assert [(axis.name, axis.low, axis.high) for axis in drawn.axes] == [
        ("lora.rank", "8", "16"),
        ("training.learningRate", "1e-4", "2e-4"),
        ("held-out loss", "1", "2"),
    ]
    low, high = drawn.bottom, drawn.top
    assert [(each.points, each.is_best) for each in drawn.threads] == [
        (f"60.0,{high}.0 480.0,{low}.0 900.0,{(low + high) / 2:.1f}", False),
        (f"60.0,{low}.0 480.0,{low}.0 900.0,{high}.0", False),
        (f"60.0,{high}.0 480.0,{high}.0 900.0,{low}.0", True),
    ]
    assert parallel([runs[0], runs[3]]) is None  # only one setting differs
    assert parallel([runs[0]]) is None
    assert ranking_table(ranked(runs)).splitlines() == [
        "run,uid,state,lora.rank,training.learningRate,heldOutLoss,baseHeldOutLoss,adapter",
        "c,c,Succeeded,16,2e-4,1.0,,",
        "d,d,Succeeded,16,1e-4,1.5,,",
        "a,a,Succeeded,8,1e-4,2.0,,",
        "b,b,Failed,8,1e-4,,,",
    ]


def test_a_cell_of_the_table_is_no_formula() -> None:
    runs = [
        Run.model_validate(
            {"uid": uid, "name": uid, "experiment": "e", "method": "SFT", "spec": {"=1+1": f"@{uid}\x1b[31m", "n": -1}}
            | {"createdTime": "2026-11-28T00:00:00Z"}
        )
        for uid in ("a", "b")
    ]
    said = table(comparison("ml", runs, best={}, ignored=(), show_equal=True)).splitlines()
    assert said[1:4] == ["'=1+1,'@a,'@b", "dataset,–,–", "n,-1,-1"]


def test_nothing_to_draw_is_no_chart() -> None:
    assert draw("x", [Line(label="x", metric="x", run="u", parts=[])]) is None
    assert sparkline([part(1, 1.0)]) == ""


def test_settings_that_differ_from_the_defaults_come_first() -> None:
    spec = {"method": "SFT", "training": {"batchSize": 16, "seed": 7}, "lora": {"targetModules": ["q", "k"]}}
    found = [(each.path, each.value, each.default, each.differs) for each in settings_of(spec)]
    assert found == [
        ("lora.targetModules", '["q", "k"]', "–", True),
        ("method", "SFT", "–", True),
        ("training.seed", "7", "42", True),
        ("training.batchSize", "16", "16", False),
    ]
    assert defaults()["training.schedule"] == "Cosine"
    assert defaults()["jobTTLSeconds"] == "3600"


def test_only_what_differs_is_compared_and_a_default_is_a_value() -> None:
    rows = differences(
        [{"training": {"batchSize": 16, "seed": 1}}, {"training": {"seed": 2}}], ignored=["training.seed"]
    )
    assert [(row.path, row.values, row.differs, row.is_ignored) for row in rows] == [
        ("training.batchSize", ("16", "16"), False, False),
        ("training.seed", ("1", "2"), True, True),
    ]


@pytest.mark.parametrize(
    ("name", "following"),
    [("support-14", "support-15"), ("support", "support-2"), ("a-9", "a-10"), ("x" * 63, "x" * 61 + "-2")],
)
def test_a_run_made_from_another_has_the_next_name(name: str, following: str) -> None:
    assert next_name(name) == following


@pytest.mark.parametrize(
    ("shape", "row", "parts"),
    [
        ("text", b'{"text": "all"}', [("text", "all", "learned")]),
        (
            "prompt-completion",
            b'{"prompt": "q", "completion": "a", "id": 7}',
            [("prompt", "q", "given"), ("completion", "a", "learned")],
        ),
        (
            "messages",
            b'{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}',
            [("user", "q", "given"), ("assistant", "a", "learned")],
        ),
        (
            "preference",
            b'{"prompt": "q", "chosen": "a", "rejected": "b"}',
            [("prompt", "q", "given"), ("chosen", "a", "preferred"), ("rejected", "b", "avoided")],
        ),
        (
            "preference-messages",
            b'{"chosen": [{"role": "assistant", "content": "a"}], "rejected": [{"role": "assistant", "content": "b"}]}',
            [("assistant", "a", "preferred"), ("assistant", "b", "avoided")],
        ),
        (
            "unpaired",
            b'{"prompt": "q", "completion": "a", "label": false}',
            [("prompt", "q", "given"), ("completion", "a", "avoided")],
        ),
        ("other", b'{"conversations": []}', [("row", '{"conversations": []}', "given")]),
        ("messages", b'{"messages": [3, {"content": null}]}', [("", "3", "given"), ("", "null", "given")]),
        ("text", b"not json \xff", [("row", "not json \ufffd", "given")]),
    ],
)
def test_a_row_is_shown_as_it_is_learned(shape: str, row: bytes, parts: list[tuple[str, str, str]]) -> None:
    assert [(each.role, each.text, each.kind) for each in row_view(1, row, shape).segments] == parts


def test_what_is_not_learned_of_a_row_is_named() -> None:
    assert row_view(1, b'{"prompt": "q", "completion": "a", "id": 7, "lang": "de"}', "prompt-completion").extra == (
        "id",
        "lang",
    )


def test_lengths_are_quantiles_of_the_rows() -> None:
    lines = [b"x" * length for length in range(1, 101)] + [b"x" * 100, b""]
    found = lengths_of(lines, is_all=True)
    assert found is not None
    assert (found.rows, found.middle, found.ninety, found.ninety_nine, found.longest, found.duplicates) == (
        101,
        51,
        91,
        100,
        100,
        1,
    )
    assert len(found.bars) == 20
    assert lengths_of([b"", b" "], is_all=True) is None


async def test_versions_differ_by_rows_and_not_by_their_order() -> None:
    async def blocks(*parts: bytes):  # type: ignore[no-untyped-def]
        for each in parts:
            yield each

    found = await difference(blocks(b"a\nb\nb", b"\nc\n"), blocks(b"c\nb\na\nd"))
    assert (found.added, found.removed, found.kept) == (1, 1, 3)
    assert (found.added_rows, found.removed_rows) == (("d",), ("b",))


def test_a_filter_is_what_the_form_says() -> None:
    found = filter_of({"state": "Failed", "dataset": "tickets/7", "text": " row ", "experiment": "", "archived": "1"})
    assert (found.states, found.dataset, found.text, found.experiment, found.archived, found.sort) == (
        ("Failed",),
        "tickets/7",
        "row",
        None,
        None,
        "-created",
    )
    assert filter_of({}).archived is False


@pytest.mark.parametrize("query", [{"sort": "uid"}, {"experiment": "A b"}, {"dataset": "x/y"}, {"state": "a b"}])
def test_a_filter_that_makes_no_sense_is_refused(query: dict[str, str]) -> None:
    with pytest.raises(Invalid):
        filter_of(query)


def test_tags_are_read_as_they_are_written() -> None:
    assert read_tags("team=support, reviewed,a.b/c = x y ,") == {"team": "support", "reviewed": "", "a.b/c": "x y"}
    hard = {"a": "x, y=z", "b": "C:\\dir\\", "c": "\\,"}
    assert read_tags(tags_text(hard)) == hard
    for wrong in ("=x", "a b=c", "k=\x00", "k=" + "v" * 300, ",".join(f"t{n}" for n in range(MAX_FIELDS))):
        with pytest.raises(Invalid):
            read_tags(wrong)


@pytest.mark.parametrize(
    ("wanted", "path"),
    [
        ("/ui/ml/runs?state=Failed", "/ui/ml/runs?state=Failed"),
        ("//evil.example/ui/", "/ui/"),
        ("/ui//evil.example", "/ui/"),
        ("https://evil.example/ui/", "/ui/"),
        ("/ui/\\evil", "/ui/"),
        ("/ui/x\r\nSet-Cookie: a", "/ui/"),
        ("/api/v1", "/ui/"),
        ("", "/ui/"),
    ],
)
def test_after_signing_in_one_stays_here(wanted: str, path: str) -> None:
    assert local_path(wanted) == path
