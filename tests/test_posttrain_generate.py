"""Completions and their log-probabilities: what is drawn, what a kill costs, what is refused."""

import shutil
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("trl")

import torch
import transformers

import tiny_models
from helpers import snapshot
from llm_server import LLMServer
from tiny_causal import SIGNS, TEMPLATE, as_messages, save_causal, sums
from whet import WhetError
from whet.annotate.connect import connect
from whet.annotate.protocol import Answer, Failure
from whet.posttrain import speaker
from whet.posttrain.ask import generate_with
from whet.posttrain.generate import completion_logprobs, generate
from whet.posttrain.models import load_causal, load_tokenizer
from whet.posttrain.settings import GenerateSettings, TrainSettings
from whet.posttrain.speaker import Speaker, uniforms
from whet.posttrain.trainers import train_sft

END = SIGNS.index("</s>")
DRAWN = {"temperature": 1.0, "max_new_tokens": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that knows sums a little, and so ends its answers after some tokens."""
    path = tmp_path_factory.mktemp("causal")
    settings = TrainSettings(tune="full", learning_rate=1e-2, batch_size=16, epochs=8)
    return str(train_sft(save_causal(path / "raw"), sums(60), path / "tuned", settings))


def mixed(n=20):
    """Prompts of many lengths."""
    rng = np.random.default_rng(0)
    return pa.table({"prompt": ["1+" * k + "2=" for k in rng.integers(0, 12, n)]})


# --- completions ----------------------------------------------------------------------------------


def test_greedy_completions_are_those_of_transformers(tmp_path, folder):
    table = mixed()
    said = generate(folder, table, tmp_path / "out", GenerateSettings(max_new_tokens=12))
    model, tokenizer = load_causal(folder), load_tokenizer(folder)
    for row in said.to_pylist():
        ids = tokenizer(row["prompt"], return_tensors="pt")
        whole = model.generate(
            **ids, max_new_tokens=12, do_sample=False, eos_token_id=END, pad_token_id=0
        )[0, ids["input_ids"].shape[1] :].tolist()
        assert row["finished"] == (END in whole)
        assert row["completion"] == tokenizer.decode(whole, skip_special_tokens=True)
        assert row["tokens"] == whole[: whole.index(END) + 1 if END in whole else None]
    assert len(set(said["finished"].to_pylist())) == 2  # some end, some do not


def test_what_is_drawn_depends_on_row_and_sample_not_on_batches(tmp_path, folder):
    table = mixed()
    settings = GenerateSettings(**DRAWN, samples=3, top_p=0.95)
    whole = generate(folder, table, tmp_path / "whole", settings)
    small = GenerateSettings(**DRAWN, samples=3, top_p=0.95, tokens_per_batch=40)
    assert generate(folder, table, tmp_path / "small", small).equals(whole)
    assert whole["row"].to_pylist() == [row for row in range(20) for _ in range(3)]
    assert whole["sample"].to_pylist() == [0, 1, 2] * 20
    # A row brings its number along, wherever it stands.
    numbered = pa.table({"row": np.arange(20), "prompt": table["prompt"]}).slice(12).take([3, 1, 0])
    some = generate(folder, numbered, tmp_path / "some", settings)
    assert some["row"].to_pylist() == [15] * 3 + [13] * 3 + [12] * 3
    expected = whole.filter(pa.array([row in (12, 13, 15) for row in whole["row"].to_pylist()]))
    assert sorted(map(str, some.to_pylist())) == sorted(map(str, expected.to_pylist()))
    other = generate(folder, table, tmp_path / "seed", GenerateSettings(**DRAWN, samples=3, seed=1))
    assert other["completion"] != whole["completion"]


def test_equal_prompts_get_completions_of_their_own(tmp_path, folder):
    table = pa.table({"prompt": ["7+8="] * 30})
    said = generate(folder, table, tmp_path / "out", GenerateSettings(**DRAWN))
    assert said["row"].to_pylist() == list(range(30))
    assert len(set(said["completion"].to_pylist())) > 3


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (2.0, 1.0), (1.0, 0.6)])
def test_tokens_are_drawn_as_often_as_they_are_probable(tmp_path, folder, temperature, top_p):
    n = 3000
    table = pa.table({"prompt": ["7+8="] * n})
    settings = GenerateSettings(
        temperature=temperature, top_p=top_p, max_new_tokens=1, tokens_per_batch=10**6
    )
    said = generate(folder, table, tmp_path / "out", settings)
    model, tokenizer = load_causal(folder), load_tokenizer(folder)
    with torch.inference_mode():
        logits = model(**tokenizer("7+8=", return_tensors="pt")).logits[0, -1]
    shares = (logits / temperature).softmax(-1).numpy()
    best_first = np.argsort(-shares)
    kept = best_first[: 1 + int((np.cumsum(shares[best_first]) < top_p).sum())]
    expected = np.zeros(len(shares))
    expected[kept] = shares[kept] / shares[kept].sum()
    texts, ended = said["completion"].to_pylist(), said["finished"].to_pylist()
    tokens = [END if e else SIGNS.index(t) if t else 0 for t, e in zip(texts, ended, strict=True)]
    hidden = sum(expected[k] for k in (0, 1, 2))  # special tokens have no text
    found = np.bincount(tokens, minlength=len(SIGNS)) / n
    seen = [k for k in range(3, len(SIGNS))]
    assert found[seen] == pytest.approx(expected[seen], abs=4 * 0.5 / np.sqrt(n))
    assert hidden < 0.2
    assert (found[seen][expected[seen] == 0] == 0).all()


def test_messages_are_answered_with_messages(tmp_path):
    folder = save_causal(tmp_path / "model", template=TEMPLATE)
    table = as_messages(sums(5)).select(["prompt"])
    said = generate(folder, table, tmp_path / "out", GenerateSettings(**DRAWN))
    assert said["prompt"].equals(table["prompt"])
    assert {message[0]["role"] for message in said["completion"].to_pylist()} == {"assistant"}
    text = pa.table({"prompt": ["u=1+1=a="]})  # what the template makes of it
    one = pa.table({"prompt": [[{"role": "user", "content": "1+1="}]]})
    greedy = GenerateSettings(max_new_tokens=5)
    by_text = generate(folder, text, tmp_path / "text", greedy)["completion"][0].as_py()
    by_talk = generate(folder, one, tmp_path / "talk", greedy)["completion"][0].as_py()
    assert by_talk == [{"role": "assistant", "content": by_text}]


def test_a_long_prompt_has_the_room_that_is_left(tmp_path, folder):
    table = pa.table({"prompt": ["1" * 125, "1" * 100, "1+1="]})
    settings = GenerateSettings(max_new_tokens=20)
    said = generate(folder, table, tmp_path / "out", settings)
    alone = generate(folder, table.slice(1, 1), tmp_path / "alone", settings)
    assert len(said["completion"][0].as_py()) <= 3
    assert said["completion"][1] == alone["completion"][0]
    with pytest.raises(WhetError, match="the prompt of row 1 has 128 tokens"):
        generate(folder, pa.table({"prompt": ["1", "1" * 128]}), tmp_path / "no", settings)
    assert not (tmp_path / "no").exists()


# --- resuming -------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process ends here."""


def test_a_broken_generation_goes_on_with_the_next_batch(tmp_path, folder, monkeypatch):
    table, settings = mixed(), GenerateSettings(**DRAWN, tokens_per_batch=100)
    whole = generate(folder, table, tmp_path / "whole", settings)

    def killer(stage, done, total):
        assert (stage, total) == ("generate", 20)
        if done > 10:
            raise Killed

    out = tmp_path / "broken"
    with pytest.raises(Killed):
        generate(folder, table, out, settings, progress=killer)
    kept = len(list((out / "batches").iterdir()))
    assert kept >= 2
    assert not (out / "completions.parquet").exists()
    calls = []
    real = Speaker.complete
    monkeypatch.setattr(Speaker, "complete", lambda *a: calls.append(len(a[1])) or real(*a))
    assert generate(folder, table, out, settings).equals(whole)
    assert 0 < sum(calls) < 10
    assert sorted(path.name for path in out.iterdir()) == [
        *("completions.parquet", "generation.json", "settings.json"),
    ]
    before = snapshot(out)
    assert generate(folder, table, out, settings).equals(whole)
    assert snapshot(out) == before
    with pytest.raises(WhetError, match="started with seed = 0, not 1"):
        generate(folder, table, out, GenerateSettings(**DRAWN, tokens_per_batch=100, seed=1))
    with pytest.raises(WhetError, match="started with data_sha256"):
        generate(folder, mixed(5), out, settings)


# --- log-probabilities ----------------------------------------------------------------------------


def test_log_probabilities_are_sums_over_tokens(folder):
    table = pa.table({"prompt": mixed()["prompt"], "completion": ["3#", "12#"] * 10})
    logprobs, tokens = completion_logprobs(folder, table)
    model, tokenizer = load_causal(folder), load_tokenizer(folder)
    for k, (prompt, said) in enumerate(
        zip(table["prompt"].to_pylist(), table["completion"].to_pylist(), strict=True)
    ):
        ids = tokenizer(prompt + said + "</s>")["input_ids"]
        start = len(tokenizer(prompt)["input_ids"])
        with torch.inference_mode():
            logs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        expected = sum(float(logs[i - 1, ids[i]]) for i in range(start, len(ids)))
        assert logprobs[k] == pytest.approx(expected, abs=1e-4)
        assert tokens[k] == len(ids) - start
    small, _ = completion_logprobs(folder, table, tokens_per_batch=1)
    assert small == pytest.approx(logprobs, abs=1e-4)


def test_a_completion_that_was_broken_off_has_no_end_mark(folder):
    table = pa.table({"prompt": ["1+1="] * 2, "completion": ["2#"] * 2, "finished": [True, False]})
    logprobs, tokens = completion_logprobs(folder, table)
    assert tokens.tolist() == [3, 2]
    assert logprobs[0] < logprobs[1]
    nothing = pa.table({"prompt": ["1+1="], "completion": [""], "finished": [False]})
    assert [each.tolist() for each in completion_logprobs(folder, nothing)] == [[0.0], [0]]


def test_completions_are_drawn_as_often_as_their_probabilities_say(tmp_path, folder):
    n = 400
    said = generate(
        folder, pa.table({"prompt": ["7+8="] * n}), tmp_path / "out", GenerateSettings(**DRAWN)
    )
    texts = said["completion"].to_pylist()
    logprobs, _ = completion_logprobs(folder, said)
    for text, count in Counter(texts).most_common(3):
        share = np.exp(logprobs[texts.index(text)])
        assert count / n == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / n))


def test_tokens_that_the_model_chose_are_scored_where_they_are_known(folder):
    """Text may be cut into others: here "2" and a token without text."""
    table = pa.table({"prompt": ["1+1="], "completion": ["2"], "tokens": [[6, 2]]})
    logprobs, tokens = completion_logprobs(folder, table)
    model, tokenizer = load_causal(folder), load_tokenizer(folder)
    ids = [*tokenizer("1+1=")["input_ids"], 6, 2]
    with torch.inference_mode():
        logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    assert logprobs[0] == pytest.approx(float(logs[3, 6] + logs[4, 2]), abs=1e-4)
    assert tokens.tolist() == [2]
    counted = table.set_column(2, "tokens", pa.array([2]))  # a column of counts is no such list
    assert completion_logprobs(folder, counted)[1].tolist() == [2]


def test_rows_that_are_too_long_to_score_are_refused(folder):
    table = pa.table({"prompt": ["1", "1" * 100], "completion": ["2", "3" * 40]})
    with pytest.raises(WhetError, match="row 1 has 141 tokens, and the model reads 128"):
        completion_logprobs(folder, table)


def test_padding_and_absolute_positions_agree(tmp_path):
    """GPT-2 counts positions, so that left padding must not shift them."""
    folder = tiny_models.save_model(tmp_path / "gpt2", "gpt2")
    table = pa.table({"prompt": ["w1 w2 w3 w4 w5", "w6", "w7 w8"]})
    settings = GenerateSettings(max_new_tokens=6)
    together = generate(folder, table, tmp_path / "together", settings)
    one = GenerateSettings(max_new_tokens=6, tokens_per_batch=1)
    assert generate(folder, table, tmp_path / "alone", one).equals(together)


def test_a_model_without_keys_and_values_is_refused(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(speaker, "takes", lambda model, name: False)
    with pytest.raises(WhetError, match="ask it through a server"):
        generate(folder, mixed(2), tmp_path / "out", GenerateSettings())


# --- through a back end ---------------------------------------------------------------------------


class Scripted:
    """Answers with what was asked and the sample's number, and fails as it is told to."""

    route, at_once = {"backend": "scripted"}, 1

    def __init__(self, fails=()):
        self.asked, self.fails = [], dict(fails)

    async def complete(self, requests):
        self.asked += requests
        return [
            Failure(self.fails[request.messages[-1][1]])
            if request.messages[-1][1] in self.fails
            else Answer(f"{request.messages[-1][1]}{request.sample}")
            for request in requests
        ]

    async def close(self):
        pass


def test_a_back_end_answers_each_row(tmp_path):
    table = pa.table({"row": [5, 9, 11], "prompt": ["a", "a", "b"]})
    backend, settings = Scripted(), GenerateSettings(temperature=1.0, samples=2)
    said = generate_with(backend, table, tmp_path / "out", settings)
    assert said["row"].to_pylist() == [5, 5, 9, 9, 11, 11]
    assert said["sample"].to_pylist() == [0, 1] * 3
    # Equal prompts are asked each on its own.
    assert said["completion"].to_pylist() == ["a0", "a1", "a2", "a3", "b0", "b1"]
    assert said["finished"].to_pylist() == [True] * 6
    assert generate_with(backend, table, tmp_path / "out", settings).equals(said)
    assert len(backend.asked) == 6
    greedy = generate_with(backend, table, tmp_path / "greedy", GenerateSettings())
    assert greedy["completion"].to_pylist() == ["a0", "a0", "b0"]
    assert len(backend.asked) == 8


def test_what_a_back_end_does_not_answer(tmp_path):
    table = as_messages(pa.table({"prompt": ["a", "b"]}))
    settings = GenerateSettings()
    broken = Scripted({"b": "unreachable"})
    with pytest.raises(WhetError, match=r"1 of 2 prompts have no answer \(unreachable\)"):
        generate_with(broken, table, tmp_path / "out", settings)
    mended = Scripted({"b": "truncated"})
    said = generate_with(mended, table, tmp_path / "out", settings)
    assert [request.messages for request in mended.asked] == [(("user", "b"),)]
    assert said["completion"].to_pylist() == [[{"role": "assistant", "content": "a0"}], None]
    assert said["finished"].to_pylist() == [True, False]
    with pytest.raises(WhetError, match="leave it at 1"):
        generate_with(mended, table, tmp_path / "p", GenerateSettings(temperature=1.0, top_p=0.9))


def test_a_served_model_answers(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_KEY", "secret")
    with LLMServer() as server:
        backend = connect("openai", "tiny", base_url=server.url, key_env="LLM_KEY")
        said = generate_with(
            backend, pa.table({"prompt": ["Hello"]}), tmp_path / "out", GenerateSettings()
        )
    assert isinstance(said["completion"][0].as_py(), str)
    stored = b"".join(v or b"" for v in snapshot(tmp_path).values())
    assert b"secret" not in stored
    assert pq.read_table(tmp_path / "out" / "completions.parquet").equals(said)


def test_the_numbers_of_a_draw_are_uniform():
    numbers = np.concatenate([uniforms(0, row, 0, 50) for row in range(200)])
    assert (numbers >= 0).all()
    assert (numbers < 1).all()
    found = np.histogram(numbers, 10, (0, 1))[0] / len(numbers)
    assert found == pytest.approx(0.1, abs=0.02)
    assert uniforms(0, -1, 0, 2).tolist() != uniforms(0, 1, 0, 2).tolist()


def test_an_unloadable_model_says_so(tmp_path, folder):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00garbage!")
    with pytest.raises(WhetError, match="cannot be loaded"):
        completion_logprobs(str(broken), pa.table({"prompt": ["1"], "completion": ["2"]}))
    bert = tmp_path / "bert"
    tiny_models.save_model(bert, "bert", eos_token_id=1)
    with pytest.raises(WhetError, match=r"lacks cls\.predictions.*none of a causal language model"):
        completion_logprobs(str(bert), pa.table({"prompt": ["w1"], "completion": ["w2"]}))


def test_a_pickle_is_never_opened(tmp_path):
    folder = save_causal(tmp_path / "model")
    state = load_causal(folder).state_dict()
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save(state, tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(WhetError, match="no safetensors weights"):
        load_causal(folder)
    assert transformers.AutoConfig.from_pretrained(folder).vocab_size == len(SIGNS)
