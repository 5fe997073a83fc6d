"""What a served model needs: an end token that it stops at, its chat template, its processor's files, known layers."""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from model import exits
from model.exits import FailureError
from model.training import serving, stopping
from model.training.commands.chat import Conversation, Pair
from model.training.commands.merge import merge
from model.training.commands.verify import verify
from model.training.loop import guessing
from model.training.weights import basemodel
from tests.training.conftest import CHATML
from tests.training.harness import Run
from tests.training.programs import run_program
from tests.training.test_adapters import write_model
from tests.training.test_merge import adapter
from tests.training.trainers import make_settings, random_rows

OTHER_TEMPLATE = (
    "{% for message in messages %}{{ '### ' + message['role'] + '\n' + message['content'] + '<|endoftext|>' }}"
    "{% endfor %}{% if add_generation_prompt %}### assistant\n{% endif %}"
)


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def warnings(run: Run) -> list[str]:
    """What a run has warned of, but for the time that evaluations take of one as short as these."""
    messages = [event["message"] for event in run.events("warning")]
    return [each for each in messages if not each.startswith("evaluations will take")]


@pytest.fixture
def base(base_model: Path, tmp_path: Path) -> Path:
    """A copy of the base model that a test may change."""
    return Path(shutil.copytree(base_model, tmp_path / "base"))


@pytest.fixture
def running_on(base: Path, tokenizer: Any) -> Path:
    """A base as Qwen's are: turns end with <|im_end|>, which it was never told to stop at."""
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    change(base / "config.json", eos_token_id=end, pad_token_id=end)
    change(base / "generation_config.json", eos_token_id=end, pad_token_id=end, top_p=0.9)
    change(base / "tokenizer_config.json", eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    return base


def template(tmp_path: Path, text: str = OTHER_TEMPLATE) -> Path:
    path = tmp_path / "template.jinja"
    path.write_text(text)
    return path


def test_the_learned_end_is_the_template_s(base_model: Path) -> None:
    tokenizer = basemodel.load_tokenizer(str(base_model), None)
    ends = {"<|im_end|>": CHATML, "<|endoftext|>": OTHER_TEMPLATE}
    ends |= {"<|im_start|>": CHATML.replace("<|im_end|>", "<|im_start|>")}
    for end, text in ends.items():
        tokenizer.chat_template = text
        assert stopping.learned_end(tokenizer) == tokenizer.convert_tokens_to_ids(end)
    for text in ("{{ messages[-1]['content'] }}", "{{ raise_exception('no') }}", None):
        tokenizer.chat_template = text
        assert stopping.learned_end(tokenizer) == tokenizer.eos_token_id


def test_a_base_that_stops_elsewhere_is_told_everywhere(
    running_on: Path, tokenizer: Any, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    run = Run(tmp_path, running_on, max_steps=2).export(rows)
    assert run.train() == 0, run.said()
    (warning,) = warnings(run)
    for words in (f"answers end with <|im_end|> (token {end})", "--generation-config=", f'"stop_token_ids": [{end}]'):
        assert words in warning
    found = run.directory / "adapter"
    assert warning in (found / "README.md").read_text()
    beside = json.loads((found / "generation_config.json").read_text())
    assert beside["eos_token_id"] == [tokenizer.convert_tokens_to_ids("<|endoftext|>"), end]
    assert beside["top_p"] == 0.9
    assert verify(run.directory, str(running_on)).warnings == [warning]
    assert (
        warning
        in json.loads(
            run_program(tmp_path, "validate", *run.arguments()[1:], f"--dataset={tmp_path}/rows.jsonl").output
        )["warnings"]
    )
    merge(run.directory, str(running_on), tmp_path / "merged", "Auto")
    merged = json.loads((tmp_path / "merged/generation_config.json").read_text())
    assert merged["eos_token_id"] == beside["eos_token_id"]
    assert merged["top_p"] == 0.9


def test_texts_end_with_the_tokenizer_s_token_whatever_the_template_says(
    running_on: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    texts = [{"text": f"{row['prompt']} {row['completion']}"} for row in rows]
    given = template(tmp_path, CHATML.replace("Be brief.", "Be kind."))
    run = Run(tmp_path, running_on, max_steps=2, chat_template=given).export(texts)
    assert run.train() == 0, run.said()
    assert warnings(run) == []
    assert {file.name for file in (run.directory / "adapter").iterdir()}.isdisjoint(
        {"generation_config.json", "chat_template.jinja"}
    )
    assert verify(run.directory, str(running_on)).warnings == []
    said = run_program(tmp_path, "validate", *run.arguments()[1:], f"--dataset={tmp_path}/rows.jsonl").output
    assert not [each for each in json.loads(said)["warnings"] if "answers end" in each or "template" in each]


def test_texts_need_no_chat_template(base: Path, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    (base / "chat_template.jinja").unlink()
    run = Run(tmp_path, base, max_steps=1).export([{"text": row["completion"] + row["prompt"]} for row in rows])
    assert run.train() == 0, run.said()
    assert warnings(run) == []


def test_chat_stops_at_the_learned_token(
    running_on: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = Pair(str(running_on), adapter(running_on, tmp_path / "adapter", "q_proj"), max_new_tokens=5, system=None)
    said: list[int] = []
    model = pair._model.get_base_model()
    generate = model.generate

    def listening(**given: Any) -> Any:
        said.extend(given["generation_config"].eos_token_id)
        return generate(**given)

    monkeypatch.setattr(model, "generate", listening)
    pair.ask("What?", Conversation())
    assert set(said) == set(tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"]))


def test_a_base_that_stops_there_needs_no_word(base: Path, tmp_path: Path) -> None:
    tokenizer = basemodel.load_tokenizer(str(base), None)
    assert stopping.find(tokenizer, str(base), None).warning() is None
    before = (base / "generation_config.json").read_text()
    merge(adapter(base, tmp_path / "adapter", "q_proj"), str(base), tmp_path / "merged", "Auto")
    assert (
        json.loads((tmp_path / "merged/generation_config.json").read_text())["eos_token_id"]
        == json.loads(before)["eos_token_id"]
    )
    (base / "generation_config.json").unlink()  # then config.json counts
    assert stopping.find(tokenizer, str(base), None).warning() is None


@pytest.mark.parametrize("value", [0.0, None])
def test_an_end_token_that_was_never_trained_is_told_where_it_can_be_known(base: Path, value: float | None) -> None:
    tokenizer = basemodel.load_tokenizer(str(base), None)
    model = basemodel.load_model(str(base), None, bfloat16=False)
    ends = stopping.find(tokenizer, str(base), None)
    assert stopping.untrained(model, ends) is None
    with torch.no_grad():  # zero, or as another token that nobody has ever seen
        rows = model.get_output_embeddings().weight
        rows[ends.learned] = rows[tokenizer.bos_token_id] if value is None else value
    assert "never trained to say <|im_end|>" in str(stopping.untrained(model, ends))


def test_a_chat_template_of_one_s_own_goes_all_the_way(base: Path, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    own = template(tmp_path)
    run = Run(tmp_path, base, max_steps=2, chat_template=own).export(rows)
    assert run.train() == 0, run.said()
    assert (run.directory / "adapter/chat_template.jinja").read_text() == OTHER_TEMPLATE
    (start,) = run.events("start")
    assert "### assistant" in json.dumps(start["tokenReport"])
    messages = warnings(run)
    assert any("--chat-template=FILE" in message for message in messages)
    assert any("answers end with <|endoftext|>" in message for message in messages)
    assert set(verify(run.directory, str(base)).warnings) == set(messages)
    merge(run.directory, str(base), tmp_path / "merged", "Auto")
    assert (tmp_path / "merged/chat_template.jinja").read_text() == OTHER_TEMPLATE
    pair = Pair(str(base), run.directory, max_new_tokens=2, system=None)
    assert pair._tokenizer.chat_template == OTHER_TEMPLATE
    child = make_settings(base, tmp_path / "second", parent_adapter=run.directory / "adapter")
    assert child.chat_template == run.directory / "adapter/chat_template.jinja"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{% for message in messages %}", "line 1 is no Jinja"),
        ("<chat>", "it does not show messages"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_chat_template_is_refused(text: str | None, said: str, base: Path, tmp_path: Path) -> None:
    path = tmp_path / "none.jinja" if text is None else template(tmp_path, text)
    with pytest.raises(FailureError, match=said) as caught:
        basemodel.load_tokenizer(str(base), None, path)
    assert (caught.value.code, caught.value.reason) == (exits.INVALID_CONFIGURATION, "InvalidSpec")


def test_a_base_without_a_template_is_told(base: Path, tmp_path: Path) -> None:
    (base / "chat_template.jinja").unlink()
    settings = make_settings(base, tmp_path)
    (warning,) = serving.look(settings, basemodel.load_tokenizer(str(base), None)).warnings
    assert "joined as plain text" in warning
    assert "--chat-template (baseModel.chatTemplate)" in warning
    assert serving.look(settings, basemodel.load_tokenizer(str(base), None, template(tmp_path, CHATML))).warnings == []


def test_a_tokenizer_with_mistral_s_wrong_pattern_is_told(base: Path, tmp_path: Path) -> None:
    change(base / "config.json", model_type="mistral", transformers_version="4.50.0")
    words = json.loads((base / "tokenizer.json").read_text())  # the library looks at large vocabularies only
    words["model"]["vocab"] |= {f"word{number}": len(words["model"]["vocab"]) + number for number in range(100_000)}
    (base / "tokenizer.json").write_text(json.dumps(words))
    settings = make_settings(base, tmp_path)
    wrong = basemodel.load_tokenizer(str(base), None)
    assert any("Mistral's wrong pattern" in text for text in serving.look(settings, wrong).warnings)
    change(base / "tokenizer_config.json", fix_mistral_regex=True)
    right = basemodel.load_tokenizer(str(base), None)
    assert not any("Mistral" in text for text in serving.look(settings, right).warnings)


def test_embeddings_are_adapted_and_told_by_train_as_by_validate(
    base: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    run = Run(tmp_path, base, max_steps=2, lora_target_modules="q_proj,embed_tokens").export(rows)
    flags = [*run.arguments()[1:], f"--dataset={tmp_path}/rows.jsonl"]
    validated = run_program(tmp_path, "validate", *flags)
    assert validated.code == 0, validated.output
    (warning,) = [text for text in json.loads(validated.output)["warnings"] if "embed_tokens" in text]
    assert run.train() == 0, run.said()
    assert warning in [event["message"] for event in run.events("warning")]
    assert warning in verify(run.directory, str(base)).warnings
    run.flags["lora_target_modules"] = "q_proj,embed_nothing"
    refused = run_program(tmp_path, "validate", *run.arguments()[1:], f"--dataset={tmp_path}/rows.jsonl")
    assert refused.code == exits.INVALID_CONFIGURATION
    assert "no layer embed_nothing" in refused.output


def test_only_the_language_model_of_a_model_for_pictures_is_adapted(
    tokenizer: Any, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    base = write_model(tmp_path / "base", "gemma3", tokenizer)
    processor = {name: json.dumps({"name": name}) for name in ("preprocessor_config.json", "processor_config.json")}
    for name, text in processor.items():
        (base / name).write_text(text)
    run = Run(tmp_path, base, max_steps=2).export(rows)
    assert run.train() == 0, run.said()
    from safetensors import safe_open

    with safe_open(run.directory / "adapter/adapter_model.safetensors", "pt") as file:
        names = set(file.keys())
    assert names
    assert all(".language_model." in name for name in names)
    assert {name.split(".")[-3] for name in names} >= {"q_proj", "up_proj"}
    merge(run.directory, str(base), tmp_path / "merged", "Auto")
    for name, text in processor.items():
        assert (tmp_path / "merged" / name).read_text() == text


def test_a_merge_says_what_its_type_leaves_of_a_small_adapter(base: Path, tmp_path: Path) -> None:
    lora = adapter(base, tmp_path / "adapter", "q_proj", "v_proj", lora_alpha=0.02)
    kept = {}
    for precision in ("Float32", "BFloat16"):
        merged = merge(lora, str(base), tmp_path / precision, precision)
        kept[precision] = merged.kept
        assert merged.document()["effectKept"] == pytest.approx(merged.kept, abs=0.01)
    assert kept["Float32"] == pytest.approx(1, abs=0.02)
    assert kept["BFloat16"] < 0.9
    assert "--precision=Float32 keeps it all" in merged.text()
    assert "keeps it all" in merged.document()["warnings"][0]


def test_a_base_that_knows_less_than_guessing_ends_the_run(
    base: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(base / "model.safetensors")
    scaled = {name: tensor * (20 if "lm_head" in name else 1) for name, tensor in weights.items()}
    save_file(scaled, base / "model.safetensors", {"format": "pt"})
    run = Run(tmp_path, base, max_steps=2).export(rows)
    assert run.train() == exits.DOES_NOT_EXIST
    failure = run.said()["failure"]
    assert failure["reason"] == "BaseModelUnavailable"
    assert "of blind guessing among its" in failure["message"]
    assert run.steps() == []


def test_guessing_is_not_judged_by_rows_that_say_nothing(base_model: Path) -> None:
    model = basemodel.load_model(str(base_model), None, bfloat16=False).train()
    rows = random_rows(6)
    state = torch.random.get_rng_state()
    expected = []
    for index in range(guessing.ROWS):
        ids = torch.tensor(rows.row(index)[0][: guessing.TOKENS].tolist())
        with torch.no_grad():
            logits = model(ids[None]).logits[0, :-1]
        expected += torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none").tolist()
    assert guessing.typical_loss(model, rows) == pytest.approx(statistics.median(expected), abs=1e-5)
    assert model.training
    assert torch.equal(state, torch.random.get_rng_state())
    few = type(rows)()
    few.append([7] * 40, [7] * 40)
    assert guessing.typical_loss(model, few) != guessing.typical_loss(model, few)  # not a number
    guessing.check(model, few, "base")
