"""The trained judge: what it is trained on, and a tiny one that learns to tell right from wrong."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from whet.errors import WhetError
from whet.ilr.comparisons import KINDS, comparisons

GOLD = pa.table(
    {"row": [5, 7], "prompt": ["p5", "p7"], "completion": ["gold 5", "gold 7"], "more": [0, 1]}
)


def answers(*rows):
    """Samples as (row, checkpoint, completion), and whether each is right (it says so)."""
    samples = pa.table(
        {
            "row": [r for r, _, _ in rows],
            "checkpoint": [c for _, c, _ in rows],
            "completion": [text for _, _, text in rows],
        }
    )
    return samples, [text.startswith(("right", "gold")) for _, _, text in rows]


# --- comparisons ----------------------------------------------------------------------------------


def test_the_two_rules():
    samples, right = answers((5, 0, "wrong"), (5, 1, "right"), (7, 0, "wrong 7"), (7, 1, "gold 7"))
    paper = comparisons(GOLD, samples, right).to_pylist()
    assert paper[0] == {
        **{"row": 5, "prompt": "p5", "better": "gold 5", "worse": "right"},
        "kind": "gold over right",
    }
    assert paper[2:] == [
        {
            **{"row": 7, "prompt": "p7", "better": "gold 7", "worse": "wrong 7"},
            "kind": "gold over wrong",
        }
    ]
    assert (paper[1]["worse"], paper[1]["better"] in ("gold 5", "right")) == ("wrong", True)
    correctness = comparisons(GOLD, samples, right, rule="correctness").to_pylist()
    assert {pair["worse"] for pair in correctness} == {"wrong", "wrong 7"}
    assert {pair["kind"] for pair in correctness} <= set(KINDS[1:])


def many(n=2000):
    """n questions, each with the same answers of three checkpoints."""
    gold = pa.table({"row": range(n), "prompt": ["p"] * n, "completion": ["gold"] * n})
    said = ("wrong 0", "wrong 1", "wrong 2", "right a", "right b")
    stages = (10, 20, 30, 10, 30)
    return gold, *answers(
        *((row, c, text) for row in range(n) for c, text in zip(stages, said, strict=True))
    )


def test_earlier_checkpoints_weigh_twice_as_much_each():
    found = comparisons(*many())
    wrong = Counter(
        pair["worse"] for pair in found.to_pylist() if pair["worse"].startswith("wrong")
    )
    assert wrong["wrong 0"] / 2000 == pytest.approx(4 / 7, abs=0.03)
    assert wrong["wrong 1"] / 2000 == pytest.approx(2 / 7, abs=0.03)
    right = Counter(p["worse"] for p in found.to_pylist() if p["kind"] == "gold over right")
    assert right["right a"] / 2000 == pytest.approx(4 / 5, abs=0.03)
    better = Counter(p["better"] for p in found.to_pylist() if p["worse"].startswith("wrong"))
    assert [better[k] / 2000 for k in ("gold", "right a", "right b")] == pytest.approx(
        [1 / 3] * 3, abs=0.03
    )
    kinds = Counter(found["kind"].to_pylist())
    assert kinds["gold over wrong"] == better["gold"]


def test_the_draw_of_a_row_depends_on_seed_and_row_alone():
    gold, samples, right = many(60)
    whole = comparisons(gold, samples, right).to_pylist()
    part = comparisons(gold.slice(20, 30), samples.slice(100, 150), right[100:250]).to_pylist()
    assert part == [pair for pair in whole if 20 <= pair["row"] < 50]
    assert whole == comparisons(gold, samples, right).to_pylist()
    assert whole != comparisons(gold, samples, right, seed=1).to_pylist()


def test_comparisons_that_cannot_be_made():
    samples, right = answers((5, 0, "wrong"))
    with pytest.raises(WhetError, match="did you mean 'correctness'"):
        comparisons(GOLD, samples, right, rule="correct")
    with pytest.raises(WhetError, match="2 verdicts for 1 samples"):
        comparisons(GOLD, samples, [True, True])
    with pytest.raises(WhetError, match="a sample is of row 6"):
        comparisons(GOLD, *answers((6, 0, "wrong")))
    with pytest.raises(WhetError, match="no answer differs"):
        comparisons(GOLD, *answers((5, 0, "gold 5")))
    only_right = answers((5, 0, "right"))
    assert comparisons(GOLD, *only_right).num_rows == 1
    with pytest.raises(WhetError, match="no answer differs"):
        comparisons(GOLD, *only_right, rule="correctness")


# --- the judge ------------------------------------------------------------------------------------

WORDS = ["good", "bad", *(f"w{k}" for k in range(20))]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Return a folder with a Llama of 40,000 weights and a tokenizer of the words in question."""
    torch = pytest.importorskip("torch", reason="needs the extra train")
    transformers = pytest.importorskip("transformers", reason="needs the extra train")
    pytest.importorskip("accelerate", reason="needs the extra train")
    from tokenizers import Tokenizer, models, pre_tokenizers

    from whet.ilr.llm_judge import pair_text

    torch.manual_seed(0)
    splitter = pre_tokenizers.Whitespace()
    shown = [word for word, _ in splitter.pre_tokenize_str(pair_text("", "", ""))]
    vocabulary = {word: k for k, word in enumerate(dict.fromkeys(["<pad>", "<unk>", *shown]))}
    vocabulary |= {word: len(vocabulary) + k for k, word in enumerate(WORDS)}
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=96,
        initializer_range=0.2,
        pad_token_id=0,
    )
    folder = tmp_path_factory.mktemp("model")
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokens = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    tokens.pre_tokenizer = splitter
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokens, unk_token="<unk>", pad_token="<pad>"
    ).save_pretrained(folder)
    return str(folder)


def said(rng, word):
    return " ".join(rng.permutation([word, *rng.choice(WORDS[2:], rng.integers(1, 5))]))


def good_and_bad(n=400, seed=0):
    """Comparisons in which the better answer holds the word good, the worse one bad."""
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "row": range(n),
            "prompt": [f"w{i % 20} w{i // 20}" for i in range(n)],
            "better": [said(rng, "good") for _ in range(n)],
            "worse": [said(rng, "bad") for _ in range(n)],
            "kind": ["gold over wrong" if i % 3 else "right over wrong" for i in range(n)],
        }
    )


@pytest.fixture(scope="module")
def settings():
    from whet.ilr.evaluator import EVALUATOR

    return replace(EVALUATOR, epochs=4, learning_rate=0.003, max_length=96, batch_size=32)


@pytest.fixture(scope="module")
def trained(model, settings, tmp_path_factory):
    from whet.ilr.evaluator import train_evaluator

    out = tmp_path_factory.mktemp("judge") / "evaluator"
    return train_evaluator(good_and_bad(), model, out, settings=settings, device="cpu"), out


def test_a_tiny_judge_learns_and_measures_itself_on_other_prompts(trained):
    from whet.ilr.feedback import BothOrders

    judge, _ = trained
    report = judge.report
    assert (report.trained, report.held_out, report.too_long) == (360, 40, 0)
    assert report.accuracy.n == 40
    assert report.accuracy.value > 0.9
    assert {kind: of.n for kind, of in report.by_kind.items()}.keys() == set(KINDS[1:])
    assert sum(of.n for of in report.by_kind.values()) == 40
    assert 0.5 < report.consistent.value <= 1.0
    new = good_and_bad(60, seed=9)
    better, worse = new["better"].to_pylist(), new["worse"].to_pylist()
    s = BothOrders(judge).score(new, worse, better).values
    assert (s > 0.5).mean() > 0.9
    np.testing.assert_allclose(BothOrders(judge).score(new, better, worse).values, 1 - s)


def test_a_complete_evaluator_is_loaded_and_another_one_refused(
    trained, model, settings, monkeypatch
):
    from whet.finetune.trainer import FineTuner
    from whet.ilr.evaluator import Evaluator, train_evaluator

    judge, out = trained
    assert {p.suffix for p in out.iterdir()} <= {".json", ".safetensors", ".md"}
    assert not list(out.glob("checkpoint*"))
    monkeypatch.setattr(FineTuner, "fit", None)  # not called again
    again = train_evaluator(good_and_bad(), model, out, settings=settings, device="cpu")
    pair = ["w1"] * 8, [f"bad w{k}" for k in range(8)], [f"good w{k}" for k in range(8)]
    for other in (again, Evaluator.from_pretrained(out, device="cpu")):
        assert other.report == judge.report
        np.testing.assert_array_equal(other.accept(*pair).values, judge.accept(*pair).values)
    changed = {"settings": replace(settings, seed=1)}, {"pairs": good_and_bad(seed=1)}
    for change in changed:
        arguments = {"pairs": good_and_bad(), "settings": settings, **change}
        with pytest.raises(WhetError, match="holds an evaluator of other comparisons"):
            train_evaluator(model=model, out=out, device="cpu", **arguments)


def test_what_it_cannot_read_whole_is_a_failure(trained):
    judge, _ = trained
    found = judge.accept(["w1"] * 3, ["good", "w2 " * 90, "w3"], ["bad", "good", "x" * 10_000])
    np.testing.assert_array_equal(np.isnan(found.values), [False, True, True])
    assert set(found.failures) == {1, 2}
    assert found.failures[1] == "more than the 96 tokens that the evaluator reads"


def test_comparisons_that_are_too_long_are_left_out_and_counted(model, settings, tmp_path):
    from whet.ilr.evaluator import train_evaluator

    pairs = good_and_bad(100).to_pylist()
    for pair in pairs[:30]:
        pair["worse"] += " w1" * 90
    short = replace(settings, epochs=1)
    judge = train_evaluator(
        pa.Table.from_pylist(pairs), model, tmp_path / "e", settings=short, device="cpu"
    )
    assert judge.report.too_long == 30
    assert judge.report.trained + judge.report.held_out == 70
    for pair in pairs:
        pair["worse"] += " w1" * 90
    with pytest.raises(WhetError, match="0 comparisons fit into the 96 tokens"):
        train_evaluator(
            pa.Table.from_pylist(pairs), model, tmp_path / "f", settings=short, device="cpu"
        )


def test_a_broken_off_training_goes_on_and_ends_alike(model, settings, tmp_path):
    from whet.ilr.evaluator import FILE, train_evaluator

    pairs, steps = good_and_bad(60), []

    def train(folder, progress):
        short = replace(settings, epochs=2)
        return train_evaluator(
            pairs, model, tmp_path / folder, settings=short, device="cpu", progress=progress
        )

    def broken_off(stage, done, total):
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train("cut", broken_off)
    assert not (tmp_path / "cut" / FILE).exists()
    rest = train("cut", lambda stage, done, total: steps.append(done))
    assert len(steps) < steps[-1]  # the first epoch was not run again
    whole = train("whole", None)
    pair = ["w1"] * 8, [f"bad w{k}" for k in range(8)], [f"good w{k}" for k in range(8)]
    np.testing.assert_array_equal(rest.accept(*pair).values, whole.accept(*pair).values)
    assert rest.report == whole.report


def test_early_stopping_is_on_prompts_of_its_own(model, settings, tmp_path, monkeypatch):
    from whet.finetune import trainer
    from whet.ilr.evaluator import train_evaluator

    pairs, split = pa.concat_tables([good_and_bad(60), good_and_bad(60, seed=1)]), []

    def spied(strata, settings, groups):
        split.append((trainer_split(strata, settings, groups), groups, strata))
        return split[-1][0]

    trainer_split = trainer.split_validation
    monkeypatch.setattr(trainer, "split_validation", spied)
    stopping = replace(settings, epochs=8, learning_rate=0.3, validation=0.25, patience=1)
    judge = train_evaluator(pairs, model, tmp_path / "e", settings=stopping, device="cpu")
    ((train, held), groups, strata) = split[0]
    assert len(train) + len(held) == 2 * judge.report.trained
    assert len(set(groups)) == 54  # of the prompts; 6 measure it
    assert not set(groups[train]) & set(groups[held])
    assert len(held) == len(set(groups[held])) * 4  # two comparisons a prompt, in both orders
    assert sum(strata[held]) == len(held) / 2
    risks = [epoch["validation_risk"] for epoch in judge.tuned.history]
    assert len(risks) < 8
    assert len(risks) == np.argmin(risks) + 2  # one epoch without a new least


def test_too_few_prompts_and_damaged_folders(model, settings, trained, tmp_path):
    from whet.ilr.evaluator import FILE, Evaluator, train_evaluator

    with pytest.raises(WhetError, match="comparisons of 9 prompts"):
        train_evaluator(good_and_bad(9), model, tmp_path / "e", settings=settings, device="cpu")
    about = json.loads((trained[1] / FILE).read_text())
    for change in ({"format_version": 2}, {"report": {}}):
        folder = tmp_path / str(*change)
        folder.mkdir()
        (folder / FILE).write_text(json.dumps(about | change))
        with pytest.raises(WhetError, match=r"has format|is damaged"):
            Evaluator.from_pretrained(folder)
