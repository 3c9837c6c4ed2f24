"""A classifier as a reward: the contract of TRL, and parity with the classifier's own scores."""

import json
import pickle
import warnings

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

from conftest import flip, make_texts, sample_gold
from whet import LabelRefiner, WhetError, WhetWarning
from whet.classify.reward import RewardFunction, reward_model_id, reward_text

TEMPLATE = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} {% endfor %}"


def says(role, content):
    return {"role": role, "content": content}


def fitted(names, **parameters):
    truth = np.random.default_rng(0).integers(0, len(names), 150)
    pseudo = flip(truth, 0.8, len(names))
    gold = [None if g is None else names[g] for g in sample_gold(truth, 60)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WhetWarning)
        refiner = LabelRefiner(**({"rounds": 1} | parameters))
        return refiner.fit(make_texts(truth), [names[y] for y in pseudo], gold)


@pytest.fixture(scope="module")
def two():
    return fitted(["money", "sport"])


@pytest.fixture(scope="module")
def three():
    return fitted(["cell", "money", "sport"], method="uu")


PROMPTS = ["The bank ", "The team ", "", "The "]
COMPLETIONS = ["pays a dividend.", "wins the match.", "", "goal and the coach"]
CHATS = [
    ([says("system", "Be brief."), says("user", p)], [says("assistant", c)])
    for p, c in zip(PROMPTS, COMPLETIONS, strict=True)
]


# --- scores ---------------------------------------------------------------------------------------


def test_scores_of_two_classes_are_the_log_odds(two):
    texts = make_texts([0, 1, 1, 0])
    scores, probability = two.decision_function(texts), two.predict_proba(texts)
    assert (scores.shape, scores.dtype) == ((4,), np.float64)
    np.testing.assert_allclose(1 / (1 + np.exp(-scores)), probability[:, 1], rtol=1e-12)
    linear = two.encoder_.transform(texts) @ two.coef_[0] + two.intercept_[0]
    np.testing.assert_allclose(scores, linear, atol=1e-6)
    np.testing.assert_array_equal(scores > 0, two.predict(texts) == "sport")


def test_scores_of_three_classes_give_the_probabilities(three):
    texts = make_texts([0, 1, 2])
    scores = three.decision_function(texts)
    assert scores.shape == (3, 3)
    np.testing.assert_allclose(np.exp(scores), three.predict_proba(texts), rtol=1e-12)


def test_no_texts_give_no_scores(two, three):
    assert two.decision_function([]).shape == (0,)
    assert three.decision_function([]).shape == (0, 3)
    assert two.as_reward_func()(prompts=[], completions=[]) == []


def test_scores_do_not_saturate(two):
    class Sure(LabelRefiner):
        def predict_proba(self, texts):
            logits = np.array([[0.0, g] for g in (50.0, -50.0, 600.0, 1000.0, np.nan)])
            odds = np.exp(logits - logits.max(axis=1, keepdims=True))
            return odds / odds.sum(axis=1, keepdims=True)

    sure = Sure()
    sure.classes_ = two.classes_
    scores = sure.decision_function([""] * 5)
    np.testing.assert_allclose(scores[:3], [50, -50, 600], rtol=1e-12)
    assert 708 < scores[3] < 709
    assert RewardFunction(sure)([""] * 5, [""] * 5)[3:] == [scores[3], None]


# --- the contract ---------------------------------------------------------------------------------


def test_the_reward_is_the_score_of_the_joined_text(two):
    reward = two.as_reward_func()
    rewards = reward(prompts=PROMPTS, completions=COMPLETIONS, completion_ids=[[1]] * 4, extra="x")
    assert [type(r) for r in rewards] == [float] * 4
    joined = [p + c for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    np.testing.assert_array_equal(rewards, two.decision_function(joined))
    assert np.argmax(rewards) in (1, 3)
    other = two.as_reward_func("money")(PROMPTS, COMPLETIONS)
    np.testing.assert_array_equal(other, np.negative(rewards))


@pytest.mark.parametrize("target", ["cell", "money", "sport"])
def test_the_reward_of_one_of_three_classes(three, target):
    texts = make_texts([0, 1, 2, 2])
    rewards = three.as_reward_func(target)([""] * 4, texts)
    p = three.predict_proba(texts)[:, three.classes_.tolist().index(target)]
    np.testing.assert_allclose(rewards, np.log(p / (1 - p)), rtol=1e-9)


def test_conversations_without_a_template(two):
    prompts, completions = zip(*CHATS, strict=True)
    rewards = two.as_reward_func()(list(prompts), list(completions))
    joined = ["Be brief.\n\nThe bank \n\npays a dividend.", "Be brief."]
    np.testing.assert_array_equal([rewards[0], rewards[2]], two.decision_function(joined))


def test_batches_and_order_do_not_matter(two):
    reward = two.as_reward_func()
    whole = reward(PROMPTS, COMPLETIONS)
    single = [reward([p], [c])[0] for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    np.testing.assert_allclose(whole, single, rtol=1e-12)
    assert reward(PROMPTS[::-1], COMPLETIONS[::-1]) == whole[::-1]


def test_what_is_absent_has_no_reward(two):
    rewards = two.as_reward_func()(["The "] * 3, ["bank", None, "team"])
    assert rewards[1] is None
    assert rewards[0] < 0 < rewards[2]
    assert two.as_reward_func()(["The "], [None]) == [None]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("no", "So?\n\nno"),
        ("", "So?"),
        (None, "So?"),
        ([{"type": "text", "text": "a"}, {"type": "image"}], "So?\n\na"),
    ],
)
def test_contents_of_messages(content, text):
    assert reward_text([says("user", "So?")], [says("assistant", content)]) == text


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [("a", [says("assistant", "b")]), ([says("user", "a")], "b"), (3, "b"), ("a", [["b"]])],
)
def test_mixed_kinds_are_refused(prompt, completion):
    with pytest.raises(WhetError, match="both must be strings, or both lists of messages"):
        reward_text(prompt, completion)


def test_bad_calls_are_one_sentence(two, three):
    with pytest.raises(WhetError, match="2 prompts and 1 completions"):
        two.as_reward_func()(["a", "b"], ["c"])
    with pytest.raises(WhetError, match=r"target = 'sprot' is no class.*did you mean 'sport'"):
        two.as_reward_func("sprot")
    with pytest.raises(WhetError, match="3 classes and no target: name the one"):
        three.as_reward_func()
    with pytest.raises(NotFittedError):
        LabelRefiner().as_reward_func()


def test_a_reward_has_a_name_and_can_be_sent_to_another_process(two):
    reward = two.as_reward_func()
    assert reward.__name__ == "whet_sport"
    assert fitted([-1, 1]).as_reward_func(-1).__name__ == "whet__1"
    sent = pickle.loads(pickle.dumps(reward))
    assert sent(PROMPTS, COMPLETIONS) == reward(PROMPTS, COMPLETIONS)


def test_a_folder_gives_the_same_reward(two, tmp_path):
    two.save_pretrained(tmp_path / "model")
    want = two.as_reward_func("money")(PROMPTS, COMPLETIONS)
    for folder in (tmp_path, tmp_path / "model"):
        reward = RewardFunction.from_pretrained(folder, target="money")
        assert reward(PROMPTS, COMPLETIONS) == want
    with pytest.raises(WhetError, match="holds no fine-tuned classifier: TRL loads nothing else"):
        reward_model_id(tmp_path)


# --- fine-tuned models ----------------------------------------------------------------------------


def tuned(model, names=("calm", "angry"), **settings):
    """Return a refiner with a fine-tuned model, which knows the words of tiny_models."""
    from tiny_models import corpus
    from whet.finetune.settings import Settings

    texts, truth = corpus(80)
    truth = (truth + (np.arange(80) % len(names) == 2) * 2) % len(names)
    pseudo = flip(truth, 0.8, len(names))
    gold = [None if g is None else names[g] for g in sample_gold(truth, 50)]
    finetune = Settings(**({"epochs": 2, "learning_rate": 0.01, "max_length": 48} | settings))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WhetWarning)
        refiner = LabelRefiner("uu", encoder=f"hf:{model}", finetune=finetune)
        return refiner.fit(texts, [names[y] for y in pseudo], gold)


def give_template(folder, template=TEMPLATE):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.eos_token = "<unk>"  # generation needs an end
    tokenizer.save_pretrained(folder)


def give_special_tokens(folder, template="<s> $A <unk>"):
    transformers = pytest.importorskip("transformers")
    processors = pytest.importorskip("tokenizers.processors")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        template, special_tokens=[("<s>", 2), ("<unk>", 1)]
    )
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def train():
    """What fine-tuning needs, and one thread."""
    torch = pytest.importorskip("torch", reason="needs the extra train")
    for module in ("transformers", "peft", "accelerate", "tokenizers", "datasets"):
        pytest.importorskip(module, reason="needs the extra train")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def llama(train, tmp_path_factory):
    from tiny_models import save_model

    folder = save_model(tmp_path_factory.mktemp("llama"))
    give_template(folder)
    return folder


@pytest.fixture(scope="module")
def decoder(llama):
    return tuned(llama)


@pytest.fixture(scope="module")
def bert(train, tmp_path_factory):
    """A refiner with an encoder that was trained with a mark before and after each text."""
    from tiny_models import save_model

    folder = save_model(tmp_path_factory.mktemp("bert"), "bert")
    give_special_tokens(folder)
    return tuned(folder)


ASKED = ["w1 w2 w30", "w11 ", "w12 w40 w41 w42 w43", "w3"]
ANSWERED = [" w3 w4", "w13 w14 w15", "", " w16 w17 w18 w19 w50 w51"]
DIALOGS = [
    ([says("user", p)], [says("assistant", c)]) for p, c in zip(ASKED, ANSWERED, strict=True)
]


@pytest.mark.parametrize("kind", ["decoder", "bert"])
def test_the_reward_of_a_fine_tuned_model_is_its_logit(kind, request, train):
    refiner = request.getfixturevalue(kind)
    texts = [p + c for p, c in zip(ASKED, ANSWERED, strict=True)]
    model = refiner.tuned_
    rewards = refiner.as_reward_func()(ASKED, ANSWERED)
    np.testing.assert_array_equal(rewards, refiner.decision_function(texts))
    np.testing.assert_allclose(rewards, model.logits(model.encode(texts))[:, 1], atol=1e-6)
    assert np.ptp(rewards) > 1e-3
    single = [refiner.as_reward_func()([p], [c])[0] for p, c in zip(ASKED, ANSWERED, strict=True)]
    np.testing.assert_allclose(single, rewards, atol=1e-5)


def test_conversations_go_through_the_chat_template(decoder):
    prompts, completions = zip(*DIALOGS, strict=True)
    rewards = decoder.as_reward_func()(prompts, completions)
    texts = [f"<user> {p} <assistant> {c} " for p, c in zip(ASKED, ANSWERED, strict=True)]
    np.testing.assert_array_equal(rewards, decoder.decision_function(texts))
    tokenizer = decoder.tuned_.network.tokenizer
    assert [reward_text(p, c, tokenizer) for p, c in DIALOGS] == texts


def test_a_launched_process_scores_alone(decoder, tmp_path, monkeypatch):
    decoder.save_pretrained(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")  # there is no other process to wait for
    reward = RewardFunction.from_pretrained(tmp_path)
    want = decoder.as_reward_func()(ASKED, ANSWERED)
    np.testing.assert_allclose(reward(ASKED, ANSWERED), want, atol=1e-5)
    monkeypatch.setattr(decoder.tuned_.processes, "size", 2)
    with pytest.raises(WhetError, match="fitted in 2 processes, which score texts together: save"):
        decoder.as_reward_func()


# --- TRL ------------------------------------------------------------------------------------------


def by_id(folder, texts):
    """Return rewards as TRL computes them when it is given a model's id."""
    import torch
    import transformers

    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(
        text=texts,
        return_tensors="pt",
        padding=True,
        padding_side="right",
        add_special_tokens=False,
    )
    with torch.inference_mode():
        return model.eval()(**batch).logits[:, 0].numpy()


def test_an_id_is_as_good_where_no_special_tokens_are_added(decoder, tmp_path):
    decoder.save_pretrained(tmp_path / "model")
    folder = reward_model_id(tmp_path)
    assert folder == str(tmp_path / "model")
    texts = [p + c for p, c in zip(ASKED, ANSWERED, strict=True)]
    np.testing.assert_allclose(by_id(folder, texts), decoder.decision_function(texts), atol=1e-5)
    card = (tmp_path / "model/README.md").read_text()
    assert "by its id, for texts of at most 48 tokens" in card


def test_an_id_is_refused_where_special_tokens_are_added(bert, tmp_path):
    bert.save_pretrained(tmp_path)
    texts = [p + c for p, c in zip(ASKED, ANSWERED, strict=True)]
    off = np.abs(by_id(tmp_path, texts) - bert.decision_function(texts)).max()
    assert off > 0.01  # or there would be no reason to refuse
    with pytest.raises(WhetError, match="trained on texts with <s> and <unk>, which TRL leaves"):
        reward_model_id(tmp_path)
    record = json.loads((tmp_path / "finetune.json").read_text())["reward_model_id"]
    assert record["usable"] is False
    assert f"not by its id, {record['why_not']}" in (tmp_path / "README.md").read_text()


def test_an_id_is_refused_where_trl_could_not_load_it(llama, decoder, two, tmp_path):
    from whet.finetune.export import refusal_of_id

    tuned(llama, ("a", "b", "c"), epochs=1).save_pretrained(tmp_path / "three")
    with pytest.raises(WhetError, match="it has 3 logits and TRL reads one"):
        reward_model_id(tmp_path / "three")
    decoder.tuned_.save_pretrained(tmp_path / "adapter", merge=False)
    assert refusal_of_id(tmp_path / "adapter") == "because the folder holds an adapter alone"
    decoder.save_pretrained(tmp_path / "over")
    two.save_pretrained(tmp_path / "over")
    with pytest.raises(WhetError, match="holds no fine-tuned classifier"):
        reward_model_id(tmp_path / "over")
    decoder.save_pretrained(tmp_path / "old")
    file = tmp_path / "old/finetune.json"
    content = json.loads(file.read_text())
    del content["reward_model_id"]
    file.write_text(json.dumps(content))
    with pytest.raises(WhetError, match="does not say that it can; save it again"):
        reward_model_id(tmp_path / "old")


def train_with_trl(policy, reward_funcs, data, out, kind="GRPO"):
    """Train two steps with TRL, and return what it scored: texts, and a column of rewards each."""
    datasets = pytest.importorskip("datasets", reason="needs the extra train")
    trl = pytest.importorskip("trl", reason="needs the extra train")
    seen = []

    class Watched(getattr(trl, f"{kind}Trainer")):
        def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
            found = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
            seen.append((prompts, completions, found.numpy().copy()))
            return found

    config = getattr(trl, f"{kind}Config")(
        output_dir=str(out),
        max_steps=2,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=6,
        learning_rate=1e-3,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        disable_tqdm=True,
    )
    rows = datasets.Dataset.from_list([{"prompt": p} for p in data])
    trainer = Watched(policy, reward_funcs=reward_funcs, args=config, train_dataset=rows)
    trainer.train()
    assert trainer.state.global_step == 2
    return seen, [log for log in trainer.state.log_history if "reward" in log]


@pytest.mark.parametrize("chats", [False, True], ids=["strings", "conversations"])
@pytest.mark.parametrize("kind", ["GRPO", "RLOO"])
def test_trl_trains_with_the_function_and_scores_the_id_alike(
    kind, chats, llama, decoder, tmp_path
):
    decoder.save_pretrained(tmp_path / "model")
    data = [[says("user", p)] for p in ASKED] if chats else ASKED
    rewards = [decoder.as_reward_func(), reward_model_id(tmp_path / "model")]
    seen, logs = train_with_trl(llama, rewards, data, tmp_path / "out", kind)
    assert len(seen) == 2
    for prompts, completions, found in seen:
        assert found.shape == (4, 2)
        assert np.ptp(found[:, 0]) > 1e-3
        np.testing.assert_allclose(found[:, 0], found[:, 1], atol=1e-5)
        tokenizer = decoder.tuned_.network.tokenizer
        texts = [reward_text(p, c, tokenizer) for p, c in zip(prompts, completions, strict=True)]
        np.testing.assert_allclose(found[:, 0], decoder.decision_function(texts), atol=1e-6)
    assert "rewards/whet_calm/mean" in logs[0]


def test_trl_trains_with_a_linear_classifier_where_its_id_would_not_do(llama, bert, two, tmp_path):
    bert.save_pretrained(tmp_path / "bert")
    rewards = [two.as_reward_func(), bert.as_reward_func(), str(tmp_path / "bert")]
    seen, _ = train_with_trl(llama, rewards, ASKED, tmp_path / "out")
    texts = [p + c for p, c in zip(*seen[0][:2], strict=True)]
    np.testing.assert_allclose(seen[0][2][:, 0], two.decision_function(texts), atol=1e-6)
    np.testing.assert_allclose(seen[0][2][:, 1], bert.decision_function(texts), atol=1e-6)
    assert np.abs(seen[0][2][:, 1] - seen[0][2][:, 2]).max() > 0.01  # the trap
