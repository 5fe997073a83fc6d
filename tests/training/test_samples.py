"""Answers to held-out prompts at a run's end: the likeliest tokens, of the right model, and never at the run's cost."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from model.training.ending import ATTEMPTS
from model.training.rows.tokens import RowEncoder
from model.training.samples.answers import answers
from model.training.samples.questions import NEW_TOKENS, Reader, clean
from tests.training import faults
from tests.training.conftest import make_rows
from tests.training.harness import Run, finish

END = 7
PROMPTS = [[3, 4, 5, 6, 8, 9, 10, 11], [12, 13], [14, 15, 16], [3] * 8]
STEPS = 6
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def plainly(model: Any, prompt: list[int], most: int, end: int = END) -> list[int]:
    """The likeliest token after the whole sequence, each time anew: no cache, no padding."""
    ids = list(prompt)
    with torch.no_grad():
        while len(ids) < len(prompt) + most and (len(ids) == len(prompt) or ids[-1] != end):
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def llama() -> Any:
    return LlamaForCausalLM(LlamaConfig(vocab_size=24, initializer_range=0.5, **SIZES))


def gpt2() -> Any:
    return GPT2LMHeadModel(GPT2Config(vocab_size=24, n_embd=32, n_layer=2, n_head=2, initializer_range=0.5))


def mamba() -> Any:
    return MambaForCausalLM(
        MambaConfig(vocab_size=24, hidden_size=32, state_size=4, num_hidden_layers=2, initializer_range=0.5)
    )


def windowed() -> Any:
    return MistralForCausalLM(
        MistralConfig(vocab_size=24, initializer_range=0.5, num_key_value_heads=1, sliding_window=5, **SIZES)
    )


@pytest.mark.parametrize("make", [llama, gpt2, mamba, windowed])
def test_each_prompt_gets_the_likeliest_tokens_as_if_it_were_alone(make: Callable[[], Any]) -> None:
    lengths = set()
    for seed in range(6):
        torch.manual_seed(seed)
        model = make().double().eval()
        found = answers(model, PROMPTS, ends=[END], most=12)
        expected = [plainly(model, prompt, 12) for prompt in PROMPTS]
        assert [tokens for tokens, _ in found] == expected
        assert [ended for _, ended in found] == [tokens[-1] == END for tokens in expected]
        lengths |= {len(tokens) for tokens in expected}
    assert len(lengths) > 2  # some end by themselves, after one token or after several


def test_what_a_model_says_of_sampling_counts_for_nothing() -> None:
    torch.manual_seed(3)
    model = llama().double().eval()
    expected = answers(model, PROMPTS, ends=[END], most=12)
    own = GenerationConfig(
        do_sample=True, temperature=3.0, top_p=0.5, repetition_penalty=9.0, no_repeat_ngram_size=1, num_beams=3,
        bad_words_ids=[[4], [5]], suppress_tokens=[6], forced_eos_token_id=9, min_new_tokens=12, max_length=5,
        encoder_repetition_penalty=3.0, begin_suppress_tokens=[3], eos_token_id=3,
    )  # fmt: skip
    model.generation_config = own
    before = torch.get_rng_state()
    assert answers(model, PROMPTS, ends=[END], most=12) == expected
    assert model.generation_config is own
    assert torch.equal(torch.get_rng_state(), before)


def test_without_an_end_token_answers_are_as_long_as_they_may_be() -> None:
    torch.manual_seed(3)
    assert [(len(tokens), ended) for tokens, ended in answers(llama().eval(), PROMPTS, ends=[], most=4)] == (
        [(4, False)] * 4
    )


def reader(tokenizer: Any, *, pairs: bool = False, max_length: int = 512, positions: int | None = None) -> Reader:
    encoder = RowEncoder(tokenizer, max_length=max_length, too_long="Truncate", drops_refused=True)
    return Reader(encoder, lambda ids: tokenizer.decode(ids, skip_special_tokens=True), pairs, positions)


def exported(content: dict[str, Any], row: int = 1) -> bytes:
    return json.dumps(content | {"row": row}).encode()


def turns(*contents: str, **of_the_last: Any) -> list[dict[str, Any]]:
    said = [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(contents)]
    return [*said[:-1], said[-1] | of_the_last]


def prompted(tokenizer: Any, messages: list[dict[str, Any]]) -> list[int]:
    ids: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return ids


def test_a_question_is_what_the_answer_was_trained_to_follow(tokenizer: Any) -> None:
    for content in (
        {"prompt": "Why?", "completion": "So it is."},
        {"messages": turns("Why?", "So it is.")},
        {"messages": turns("Why?", "So it is.", "And then?", "Nothing.", weight=0)},
    ):
        question = reader(tokenizer).read(exported(content))
        assert question is not None
        assert question.ids == prompted(tokenizer, turns("Why?"))
        assert (question.prompt, question.reference, question.cut) == ("Why?", "So it is.", ())
    conversation = turns("Why?", "So it is.", "And then?", "Nothing.")
    question = reader(tokenizer).read(exported({"messages": conversation}))
    assert question is not None
    assert question.ids == prompted(tokenizer, conversation[:3])
    assert question.reference == "Nothing."
    pair = {"prompt": "Why?", "chosen": "So it is.", "rejected": "No idea."}
    question = reader(tokenizer, pairs=True).read(exported(pair))
    assert question is not None
    assert question.ids == prompted(tokenizer, turns("Why?"))
    assert question.reference == "So it is."


def test_a_text_is_continued_from_its_beginning(tokenizer: Any) -> None:
    text = " ".join(f"word {number}" for number in range(40))
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    question = reader(tokenizer).read(exported({"text": text}))
    assert question is not None
    assert len(ids) > 128
    assert question.ids == ids[:64]
    assert question.prompt + str(question.reference) == text[: len(question.prompt + str(question.reference))]
    assert question.cut == ("prompt", "reference")
    assert reader(tokenizer).read(exported({"text": "x" * 3})) is not None
    first = reader(tokenizer, max_length=40).read(exported({"text": text}))  # its first part
    assert first is not None
    assert first.ids == ids[:20]


def test_a_bad_answer_is_no_reference(tokenizer: Any) -> None:
    for label, reference in ((True, "So it is."), (False, None)):
        question = reader(tokenizer).read(exported({"prompt": "Why?", "completion": "So it is.", "label": label}))
        assert question is not None
        assert question.ids == prompted(tokenizer, turns("Why?"))
        assert (question.prompt, question.reference) == ("Why?", reference)


def test_rows_that_were_cut_or_leave_no_room_are_asked_only_where_that_is_honest(tokenizer: Any) -> None:
    long = " ".join(["really"] * 60)
    row = exported({"prompt": "Why?", "completion": long})
    length = len(prompted(tokenizer, turns("Why?")))
    cut = reader(tokenizer, max_length=length + 9).read(row)
    assert cut is not None
    assert cut.cut == ("reference",)
    assert cut.ids == prompted(tokenizer, turns("Why?"))
    assert reader(tokenizer, max_length=length).read(row) is None  # nothing of it is learned
    several = exported({"messages": turns("Why?", "So it is.", long, "Nothing.")})
    assert reader(tokenizer, max_length=length + 20).read(several) is None  # the last turn is gone
    pair = exported({"prompt": long + " why?", "chosen": "So it is.", "rejected": "No idea."})
    question = reader(tokenizer, pairs=True, max_length=60).read(pair)
    assert question is not None
    assert question.cut == ("prompt",)
    assert reader(tokenizer, positions=length + NEW_TOKENS).read(row) is not None
    assert reader(tokenizer, positions=length + NEW_TOKENS - 1).read(row) is None


def test_as_many_rows_are_asked_as_are_wanted_though_some_cannot_be(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "evaluation.jsonl"
    contents = [{"prompt": f"What is {n}?", "completion": "x" if n % 4 else " ".join("ab" * 300)} for n in range(40)]
    path.write_bytes(b"".join(exported(content, row) + b"\n" for row, content in enumerate(contents, 1)))
    asker = reader(tokenizer, max_length=400)
    asker.encoder._too_long = "Drop"
    chosen = asker.choose(path, 5, 40)
    assert len(chosen) == 5
    assert [question.place.row for question in chosen] == sorted({question.place.row for question in chosen})
    assert not [question for question in chosen if question.place.row % 4 == 1]
    assert asker.choose(path, 5, 40) == chosen


@pytest.fixture(scope="module")
def done(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nobody interrupts."""
    run = Run(tmp_path_factory.mktemp("done"), base_model, max_steps=STEPS, samples=5)
    assert run.export(make_rows(30)).train() == 0
    return run


@pytest.fixture
def run(done: Run, tmp_path: Path) -> Run:
    """The same run before its first step."""
    (tmp_path / "output").mkdir()
    shutil.copytree(done.directory / "dataset", tmp_path / "output" / "dataset")
    same = Run(tmp_path, Path(done.flags["base_model"]))
    same.flags = done.flags | {"run_directory": same.directory}
    return same


def record(run: Run) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((run.directory / "training_config.json").read_text())
    return document


def what_else_came_out(run: Run) -> list[Any]:
    weights = (run.directory / "adapter/adapter_model.safetensors").read_bytes()
    result = {key: value for key, value in record(run)["result"].items() if key not in ("adapter", "resumedFromStep")}
    told = [event for kind in ("train", "evaluation") for event in run.events(kind)]
    return [weights, result, [[event["step"], event["loss"]] for event in told]]


def said(model: Any, tokenizer: Any, samples: list[dict[str, Any]]) -> list[str]:
    """What a model that was loaded by itself answers to the samples' prompts, one after the other."""
    texts = []
    for sample in samples:
        tokens = plainly(
            model.eval().float(), prompted(tokenizer, turns(sample["prompt"])), NEW_TOKENS, tokenizer.eos_token_id
        )
        texts.append(clean(tokenizer.decode(tokens, skip_special_tokens=True).strip()))
    return texts


def test_a_run_tells_how_base_and_adapter_answer(done: Run, tokenizer: Any) -> None:
    samples = record(done)["samples"]
    lines = (done.directory / "dataset/evaluation.jsonl").read_text().splitlines()
    rows = {row["row"]: row for row in map(json.loads, lines)}
    assert len(samples) == min(5, len(rows))
    for sample in samples:
        row = rows[sample["row"]]
        assert (sample["prompt"], sample["reference"]) == (row["prompt"], row["completion"])
    base = AutoModelForCausalLM.from_pretrained(done.flags["base_model"])
    assert [sample["base"] for sample in samples[:2]] == said(base, tokenizer, samples[:2])
    adapter = PeftModel.from_pretrained(base, done.directory / "adapter")
    assert [sample["adapter"] for sample in samples[:2]] == said(adapter, tokenizer, samples[:2])
    assert any(sample["base"] != sample["adapter"] for sample in samples)
    assert "samples" not in done.said()
    told = done.events("sample")
    assert [event | sample for event, sample in zip(told, samples, strict=True)] == told
    card = (done.directory / "adapter/README.md").read_text()
    assert all(f"    {sample['reference']}" in card for sample in samples)
    assert not (done.directory / "trained.json").exists()


def test_without_samples_all_else_has_the_same_bits(done: Run, run: Run) -> None:
    run.flags["samples"] = 0
    assert run.train() == 0
    assert "samples" not in record(run)
    assert "Answers" not in (run.directory / "adapter/README.md").read_text()
    assert what_else_came_out(run) == what_else_came_out(done)


@pytest.mark.parametrize(
    ("fault", "words"),
    [(faults.out_of_memory, "memory"), (faults.broken_gpu, "ECC"), (faults.full_disk, "no space left")],
)
def test_samples_that_fail_are_a_warning(fault: Callable[..., None], words: str, done: Run, run: Run) -> None:
    assert finish(run.start(fault, "samples", 2)) == 0
    assert "samples" not in record(run)
    (warning,) = [event["message"] for event in run.events("warning") if "sample answers" in event["message"]]
    assert words in warning
    assert what_else_came_out(run) == what_else_came_out(done)
    assert run.train() == 0  # the record holds for the adapter as it is


@pytest.mark.parametrize("fault", [faults.killed, faults.sigterm])
def test_a_run_that_is_stopped_in_the_samples_makes_them_again_and_nothing_else(
    fault: Callable[..., None], done: Run, run: Run
) -> None:
    more = (0.0,) if fault is faults.sigterm else ()
    assert finish(run.start(fault, "samples", 2, *more)) in (75, -signal.SIGKILL)
    assert not (run.directory / "training_config.json").exists()
    adapter = (run.directory / "adapter").stat()
    # A second evaluation would be stopped, and so would saving the adapter again.
    assert finish(run.start(faults.killed, "final evaluation", 1)) == 0
    assert (run.directory / "adapter").stat().st_ino == adapter.st_ino
    assert record(run)["samples"] == record(done)["samples"]
    assert record(run)["result"]["adapter"] == record(done)["result"]["adapter"]
    assert what_else_came_out(run) == what_else_came_out(done)
    assert not (run.directory / "trained.json").exists()


def test_samples_that_end_the_process_time_and_again_are_left_out(done: Run, run: Run) -> None:
    for _ in range(ATTEMPTS):
        assert finish(run.start(faults.killed, "samples", 1)) == -signal.SIGKILL
    assert finish(run.start(faults.killed, "samples", 1)) == 0
    assert "samples" not in record(run)
    assert any("3 attempts ended" in event["message"] for event in run.events("warning"))
    assert what_else_came_out(run) == what_else_came_out(done)


def test_what_an_earlier_attempt_has_done_counts_only_with_its_adapter(done: Run, run: Run) -> None:
    assert finish(run.start(faults.killed, "samples", 1)) == -signal.SIGKILL
    (run.directory / "adapter/adapter_model.safetensors").write_bytes(b"something else")
    assert run.train() == 0
    assert record(run)["samples"] == record(done)["samples"]
    assert what_else_came_out(run) == what_else_came_out(done)


def test_the_base_of_preferences_is_their_reference(base_model: Path, tokenizer: Any, tmp_path: Path) -> None:
    torch.manual_seed(5)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    parent = get_peft_model(AutoModelForCausalLM.from_pretrained(base_model), config)
    parent.peft_config["default"].base_model_name_or_path = "example/tiny-llama"
    parent.save_pretrained(tmp_path / "parent")
    run = Run(
        tmp_path, base_model, method="DPO", max_steps=2, parent_adapter=tmp_path / "parent", lora_rank=None, samples=1
    )
    pairs = [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": f"No idea, {number}."}
        for number, row in enumerate(make_rows(30))
    ]
    assert run.export(pairs).train() == 0
    samples = record(run)["samples"]
    told = [sample["base"] for sample in samples[:1]]
    assert said(parent, tokenizer, samples[:1]) == told
    assert said(AutoModelForCausalLM.from_pretrained(base_model), tokenizer, samples[:1]) != told
    assert "The reference" in (run.directory / "adapter/README.md").read_text()


def test_a_run_of_labelled_answers_asks_their_prompts(base_model: Path, tokenizer: Any, tmp_path: Path) -> None:
    run = Run(tmp_path, base_model, method="KTO", max_steps=2, samples=2)
    rows = [row | {"label": number % 2 == 0} for number, row in enumerate(make_rows(30))]
    assert run.export(rows).train() == 0
    samples = record(run)["samples"]
    assert len(samples) == 2
    for sample in samples:
        row = rows[sample["row"] - 1]
        assert (sample["prompt"], sample.get("reference")) == (
            row["prompt"],
            row["completion"] if row["label"] else None,
        )
    told = [sample["base"] for sample in samples[:1]]
    assert said(AutoModelForCausalLM.from_pretrained(base_model), tokenizer, samples[:1]) == told
