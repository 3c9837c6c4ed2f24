"""LabelRefiner: the contract, the guard, the account of gold, every kind of label."""

import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.feature_extraction.text import TfidfVectorizer

from conftest import flip, make_texts, sample_gold
from whet import LabelRefiner, WhetError, WhetWarning
from whet.classify.account import Proposal, give_account


def refine(texts, pseudo, gold, **parameters):
    refiner = LabelRefiner(**{"rounds": 1, **parameters})
    refiner.fit_refine(texts, pseudo, gold)
    return refiner


#: What the product promises, it promises of the default and of the published method.
BOTH = pytest.mark.parametrize("method", ["tsp", "silr"])


@pytest.mark.parametrize(
    ("method", "folds"), [("tsp", 3), *((m, f) for m in ("pn", "uu", "silr") for f in (0, 3))]
)
def test_refined_labels_are_better_than_the_annotator(two_classes, method, folds):
    texts, truth, pseudo = two_classes
    gold = sample_gold(truth, 100)
    refiner = refine(texts, pseudo, gold, method=method, folds=folds)
    unseen = np.array([g is None for g in gold])
    before, after = ((x == truth)[unseen].mean() for x in (pseudo, refiner.labels_))
    assert after > before + (0.0 if method == "uu" and folds == 0 else 0.05)


def test_the_defaults_are_those_of_the_method(two_classes):
    texts, truth, pseudo = two_classes
    gold = sample_gold(truth, 60)
    assert LabelRefiner().method == "tsp"
    for method, rounds, folds in (("tsp", 2, 5), ("pn", 5, 0)):
        default = LabelRefiner(method).fit(texts, pseudo, gold)
        named = LabelRefiner(method, rounds=rounds, folds=folds).fit(texts, pseudo, gold)
        assert default.n_iter_ == rounds
        np.testing.assert_array_equal(default.proba_, named.proba_)


@BOTH
def test_three_classes(three_classes, method):
    texts, truth, pseudo = three_classes
    refiner = refine(texts, pseudo, sample_gold(truth, 100), method=method)
    assert refiner.theta_.shape == (3, 3)
    np.testing.assert_allclose(refiner.theta_.sum(axis=1), 1)
    assert (refiner.labels_ == truth).mean() > (pseudo == truth).mean() + 0.1


@pytest.mark.parametrize(
    "names",
    [["no", "yes"], [0, 1], [-5, 3], [False, True], ["é", "Ω"]],
    ids=["str", "int", "negative", "bool", "unicode"],
)
@BOTH
def test_labels_of_every_kind_come_back_as_they_went_in(two_classes, names, method):
    texts, truth, pseudo = two_classes
    named = [names[y] for y in pseudo]
    gold = [None if g is None else names[g] for g in sample_gold(truth, 60)]
    refiner = refine(texts, named, gold, method=method)
    assert set(refiner.labels_.tolist()) == set(names)
    assert type(refiner.labels_.tolist()[0]) is type(names[0])
    assert refiner.classes_.tolist() == sorted(names)


@BOTH
def test_the_names_and_order_of_classes_do_not_matter(two_classes, method):
    texts, truth, pseudo = two_classes
    gold = sample_gold(truth, 60)
    one = refine(texts, pseudo, gold, method=method).labels_
    swapped = refine(
        texts,
        ["b" if y == 0 else "a" for y in pseudo],
        [None if g is None else ("b" if g == 0 else "a") for g in gold],
        method=method,
    ).labels_
    assert ((swapped == "a") == (one == 1)).mean() > 0.995


@BOTH
def test_predict_is_the_argmax_of_predict_proba(three_classes, method):
    texts, truth, pseudo = three_classes
    refiner = refine(texts, pseudo, sample_gold(truth, 60), method=method)
    probability = refiner.predict_proba(texts[:50])
    assert probability.shape == (50, 3)
    np.testing.assert_allclose(probability.sum(axis=1), 1)
    assert (refiner.predict(texts[:50]) == refiner.classes_[probability.argmax(axis=1)]).all()
    assert refiner.score(texts, truth) > 0.8


@BOTH
def test_abstentions_are_refined_too_and_counted_apart(two_classes, method):
    texts, truth, pseudo = two_classes
    some = pseudo.astype(object)
    some[::3] = None
    some[1::6] = float("nan")
    some = ["" if i % 5 == 0 else y for i, y in enumerate(some)]
    refiner = refine(texts, some, sample_gold(truth, 80), method=method)
    assert set(refiner.labels_.tolist()) == {0, 1}
    assert refiner.changed_[np.array([i % 3 == 0 for i in range(600)])].all()
    answered = refiner.estimate_["annotator"].n
    assert answered + refiner.estimate_["filled"].n == refiner.estimate_["refined"].n == 80
    assert sum(r.startswith("annotator abstained") for r in refiner.reason_) > 100


def test_duplicated_texts_keep_their_own_rows(two_classes):
    texts, truth, pseudo = two_classes
    twice = texts + texts
    labels = np.concatenate([pseudo, 1 - pseudo])
    gold = sample_gold(truth, 60) + [None] * 600
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WhetWarning)
        refiner = refine(twice, labels[:1200], gold, guard="off", folds=2, method="pn")
    assert len(refiner.labels_) == 1200
    np.testing.assert_allclose(refiner.proba_[:600], refiner.proba_[600:], atol=1e-9)


@BOTH
def test_gold_rows_keep_their_gold_label_and_say_so(two_classes, method):
    texts, truth, pseudo = two_classes
    gold = sample_gold(truth, 60)
    refiner = refine(texts, pseudo, gold, method=method)
    for row, label in enumerate(gold):
        if label is not None:
            assert refiner.labels_[row] == label
            assert refiner.reason_[row] == "gold label"


def test_gold_labels_reach_the_training_of_silr_only_through_theta(two_classes):
    """Gold labels with the same counts of (pseudo, gold) give the same classifier."""
    texts, truth, pseudo = two_classes
    gold = sample_gold(truth, 100)
    rows = [i for i, g in enumerate(gold) if g is not None]
    permuted = list(gold)
    for label in (0, 1):
        mine = [i for i in rows if pseudo[i] == label]
        for i, j in zip(mine, np.roll(mine, 3), strict=True):
            permuted[i] = gold[j]
    assert permuted != gold
    one, other = (refine(texts, pseudo, g, method="silr", guard="off") for g in (gold, permuted))
    np.testing.assert_array_equal(one.coef_, other.coef_)


@pytest.mark.parametrize(
    ("method", "purpose"),
    [
        ("tsp", "annotator model, students and their weights"),
        ("silr", "theta and prior (gold)"),
    ],
)
def test_every_use_of_gold_is_listed(two_classes, method, purpose):
    texts, truth, pseudo = two_classes
    report = refine(texts, pseudo, sample_gold(truth, 60), rounds=2, method=method).gold_
    assert report["given"] == report["kept"] == len(report["rows"]) == 60
    assert [(use["purpose"], use["round"]) for use in report["uses"]] == [
        (purpose, 1),
        (purpose, 2),
        ("accuracy estimates and guard", None),
        ("gold rows keep their gold label", None),
    ]


def test_gold_beyond_the_budget_is_not_used(two_classes):
    texts, truth, pseudo = two_classes
    with pytest.warns(WhetWarning, match="100 gold labels are given and a random 40 are used"):
        refiner = refine(texts, pseudo, sample_gold(truth, 100), gold_budget=40)
    assert refiner.estimate_["refined"].n == 40
    # The others only keep their label.
    assert sum(reason == "gold label" for reason in refiner.reason_) == 100
    assert refiner.gold_["kept"] == 40


@BOTH
def test_guard_keeps_a_perfect_annotator(two_classes, method):
    texts, truth, _ = two_classes
    refiner = refine(texts, truth, sample_gold(truth, 60), method=method)
    assert refiner.kept_annotator_
    assert (refiner.labels_ == truth).all()
    assert refiner.verdict_.startswith("Annotator's labels kept")
    assert not refiner.changed_.any()


def test_guard_off_writes_what_the_method_published(two_classes):
    texts, truth, _ = two_classes
    hard = np.random.default_rng(0).permutation(texts).tolist()  # texts say nothing
    gold, method = sample_gold(truth, 60), "silr"
    refiner = refine(hard, flip(truth, 0.9), gold, method=method, guard="off")
    assert not refiner.kept_annotator_
    assert (refiner.labels_ != flip(truth, 0.9)).sum() > 30
    assert "better" in refiner.verdict_
    assert "Refined labels are better" not in refiner.verdict_
    safe = refine(hard, flip(truth, 0.9), gold, method=method)
    assert safe.kept_annotator_
    kept = [r for r in safe.reason_ if r.startswith("kept by the guard; classifier prefers")]
    assert len(kept) > 30


@pytest.mark.parametrize(("guard", "kept"), [("safe", True), ("mild", False), ("off", False)])
def test_guards_differ_on_a_tie(guard, kept):
    gold = np.array([0, 1, 0, 1])
    annotator, classifier = np.array([0, 1, 0, 0]), np.array([0, 1, 1, 1])  # one wrong each
    account = give_account(annotator, [Proposal(classifier)], gold, guard, whole=False)
    assert account.kept_annotator is kept
    assert account.labels.tolist() == (annotator if kept else classifier).tolist()
    assert ("cannot tell" in account.verdict) is not kept


@pytest.mark.parametrize(("guard", "kept"), [("safe", True), ("mild", True), ("off", False)])
def test_guards_keep_the_annotator_on_a_loss(guard, kept):
    gold = np.array([0, 1, 0, 1])
    account = give_account(gold, [Proposal(np.array([0, 1, 1, 1]))], gold, guard, whole=False)
    assert account.kept_annotator is kept


def test_a_sure_loss_is_called_one():
    gold = np.arange(40) % 2
    account = give_account(gold, [Proposal(1 - gold)], gold, "off", whole=False)
    assert "NOT better" in account.verdict
    assert "guard lets them pass" in account.verdict


def test_gold_rows_of_one_class_convince_nobody():
    gold = np.zeros(40, dtype=np.int64)
    account = give_account(1 - gold, [Proposal(gold)], gold, "safe", whole=False)
    assert account.kept_annotator


@pytest.mark.parametrize(
    ("won", "lost", "taken"), [(3, 0, "bold"), (3, 1, "cautious"), (3, 2, "last"), (3, 3, None)]
)
def test_the_boldest_proposal_that_convinces_is_taken(won, lost, taken):
    """The gain won - lost must exceed z sqrt(won + lost), and z falls from 1.5 to 0."""
    gold = np.arange(10) % 2
    annotator = np.where(np.arange(10) < won, 1 - gold, gold)
    proposed = np.where(np.arange(10) < 10 - lost, gold, 1 - gold)
    proposals = {
        name: Proposal(proposed, z, 0.1)
        for name, z in (("bold", 1.5), ("cautious", 0.9), ("last", 0))
    }
    account = give_account(annotator, list(proposals.values()), gold, "safe", whole=False)
    assert account.kept_annotator is (taken is None)
    assert account.proposal is proposals[taken or "bold"]
    bold = give_account(annotator, list(proposals.values()), gold, "mild", whole=False)
    assert (bold.kept_annotator, bold.proposal) == (False, proposals["bold"])


def test_an_inverted_annotator_is_refused_where_theta_needs_a_better_one(two_classes):
    texts, truth, _ = two_classes
    with pytest.raises(WhetError, match="no better than chance on the 60 gold rows"):
        refine(texts, flip(truth, 0.2), sample_gold(truth, 60), method="silr")


def test_a_random_annotator_is_refused_or_kept(two_classes):
    texts, truth, _ = two_classes
    pseudo = np.random.default_rng(5).integers(0, 2, len(truth))
    refused = 0
    for seed in range(4):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", WhetWarning)
                refiner = refine(texts, pseudo, sample_gold(truth, 60, seed), method="silr")
        except WhetError:
            refused += 1
        else:
            assert (refiner.labels_ == truth).mean() >= (pseudo == truth).mean() - 0.02
    assert refused > 0


def test_few_gold_rows_work_with_a_warning(two_classes):
    texts, truth, pseudo = two_classes
    gold = [None] * len(truth)
    for label in (0, 1):
        for row in np.flatnonzero((pseudo == label) & (truth == label))[:3]:
            gold[row] = label
    with pytest.warns(WhetWarning, match="only 6 gold rows: the intervals are wide"):
        refiner = refine(texts, pseudo, gold)
    assert refiner.estimate_["annotator"].n == 6


def test_no_gold_is_refused_where_theta_needs_it(two_classes):
    texts, _, pseudo = two_classes
    with pytest.raises(WhetError, match=r"no gold labels.*label about 50 random rows"):
        refine(texts, pseudo, None, method="silr")


@pytest.mark.parametrize("method", ["tsp", "pn"])
def test_no_gold_keeps_the_annotator_where_nothing_shows_a_gain(two_classes, method):
    texts, _, pseudo = two_classes
    with pytest.warns(WhetWarning, match="there are no gold labels"):
        refiner = refine(texts, pseudo, None, method=method)
    assert refiner.kept_annotator_
    assert (refiner.labels_ == pseudo).all()
    assert refiner.estimate_ == {}
    assert refiner.theta_ is None


def test_oracle_needs_and_uses_every_gold_label(two_classes):
    texts, truth, pseudo = two_classes
    with pytest.raises(WhetError, match="theta='oracle' needs the gold label of every row"):
        refine(texts, pseudo, sample_gold(truth, 60), method="silr", theta="oracle")
    refiner = refine(texts, pseudo, truth, method="silr", theta="oracle")
    flagged = pseudo == 1
    assert refiner.theta_[1, 1] == pytest.approx(truth[flagged].mean())
    assert refiner.estimate_["annotator"].low == refiner.estimate_["annotator"].value
    assert (refiner.labels_ != truth).any()  # the truth is not written into the result


def test_released_mode_leaks_the_oracle_after_round_one(two_classes):
    texts, truth, pseudo = two_classes
    refiner = refine(
        texts, pseudo, truth, method="silr", theta="released", rounds=2, gold_budget=50
    )
    first, second = refiner.history_
    assert sum(first["theta_n"]) == 50
    assert sum(second["theta_n"]) == len(truth)
    assert first["prior"][1] == pytest.approx(truth.mean())


def test_released_mode_knows_two_classes_only(three_classes):
    texts, truth, pseudo = three_classes
    with pytest.raises(WhetError, match="theta='released' with 3 classes"):
        refine(texts, pseudo, truth, method="silr", theta="released")


@BOTH
def test_same_seed_same_result(two_classes, method):
    texts, truth, pseudo = two_classes
    gold = sample_gold(truth, 60)
    one, other = (refine(texts, pseudo, gold, rounds=2, folds=2, method=method) for _ in range(2))
    np.testing.assert_array_equal(one.proba_, other.proba_)
    np.testing.assert_array_equal(one.coef_, other.coef_)
    assert one.reason_ == other.reason_


@pytest.mark.parametrize(("method", "with_theta"), [("tsp", [1]), ("silr", [1, 2, 3])])
def test_history_has_a_record_a_round_with_intervals(two_classes, method, with_theta):
    """The labels of tsp are the annotator's in every round, so their theta is told once."""
    texts, truth, pseudo = two_classes
    refiner = refine(texts, pseudo, sample_gold(truth, 60), rounds=3, method=method)
    assert [record["round"] for record in refiner.history_] == [1, 2, 3]
    assert [r["round"] for r in refiner.history_ if "theta" in r] == with_theta
    for record in refiner.history_:
        assert record["gold_rows"] == 60
        assert record["accuracy"]["low"] < record["accuracy"]["high"]
    for record in refiner.history_[: len(with_theta)]:
        low, theta, high = (np.array(record[k]) for k in ("theta_low", "theta", "theta_high"))
        assert (low <= theta).all()
        assert (theta <= high).all()


def test_constructor_only_stores_and_clone_works():
    refiner = LabelRefiner("nope", rounds=-1)
    assert clone(refiner).get_params() == refiner.get_params()
    with pytest.raises(WhetError, match="unknown method 'nope'"):
        refiner.fit(["a"] * 8, [0, 1] * 4, [0, 1] * 4)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"rounds": 0}, "rounds = 0: give a whole number of at least 1"),
        ({"gold_budget": 0}, "gold_budget = 0"),
        ({"guard": "sfae"}, r"unknown guard 'sfae' \(did you mean 'safe'\?\)"),
        ({"theta": "gould"}, r"unknown theta 'gould' \(did you mean 'gold'\?\)"),
        ({"encoder": "tfdif"}, r"unknown encoder 'tfdif' \(did you mean 'tfidf'\?\)"),
        ({"encoder": 3}, "has no fit and transform"),
        ({"folds": 1}, "folds = 1: method='tsp' scores"),
        ({"folds": 0}, "folds = 0: method='tsp' scores each row by a student that did not see it"),
        ({"theta": "oracle"}, "theta='oracle' is for the methods pn, uu, silr"),
        ({"theta": "released"}, "theta='released' is for the methods pn, uu, silr"),
    ],
)
def test_wrong_parameters_are_named(two_classes, parameters, words):
    texts, truth, pseudo = two_classes
    with pytest.raises(WhetError, match=words):
        refine(texts, pseudo, sample_gold(truth, 60), **parameters)


@pytest.mark.parametrize(
    ("texts", "pseudo", "words"),
    [
        (["a", "b"], [0, 1], "2 rows for 2 classes: at least 4"),
        (["a"] * 6, [0, 1, 0], "6 texts, 3 pseudo-labels and 6 gold"),
        (["a"] * 6, [0] * 6, "every pseudo-label is 0"),
        (["a"] * 6, [None] * 6, "all 6 pseudo-labels are missing"),
        (["a"] * 6, [0, "x"] * 3, r"mix text \('x'\) and numbers \(0\)"),
        (["a"] * 6, [0.5, 1] * 3, "row 0 has the pseudo-label 0.5"),
        ([1] * 6, [0, 1] * 3, "text 0 is int, not a string"),
        (["\ud800"] * 6, [0, 1] * 3, "text 0 holds half of a surrogate pair"),
        ([], [], "there are no rows"),
    ],
)
def test_unusable_input_is_named(texts, pseudo, words):
    with pytest.raises(WhetError, match=words):
        LabelRefiner().fit_refine(texts, pseudo)


def test_gold_outside_the_classes_is_named(two_classes):
    texts, truth, pseudo = two_classes
    gold = sample_gold(truth, 60)
    gold[gold.index(1)] = 7
    with pytest.raises(WhetError, match="has the gold label 7, which no pseudo-label uses"):
        refine(texts, pseudo, gold, method="silr")


def test_encoder_may_be_any_object_with_fit_and_transform(two_classes, tmp_path):
    texts, truth, pseudo = two_classes
    refiner = refine(texts, pseudo, sample_gold(truth, 60), encoder=TfidfVectorizer())
    assert refiner.score(texts, truth) > 0.85
    with pytest.raises(WhetError, match="TfidfVectorizer is not one of whet's"):
        refiner.save_pretrained(tmp_path)


def test_a_broken_encoder_is_named(two_classes):
    class Broken:
        def fit(self, texts):
            return self

        def transform(self, texts):
            return np.full((len(texts), 2), np.nan)

    texts, truth, pseudo = two_classes
    with pytest.raises(WhetError, match="NaN or infinite features"):
        refine(texts, pseudo, sample_gold(truth, 60), encoder=Broken())


@BOTH
def test_empty_texts_and_very_long_ones_are_rows_like_others(two_classes, method):
    texts, truth, pseudo = two_classes
    odd = ["", None, "x\x00y", "goal " * 1_000_000, *texts[4:]]
    refiner = refine(odd, pseudo, sample_gold(truth, 60), method=method)
    assert np.isfinite(refiner.proba_).all()


def test_rounds_end_when_every_label_is_one_class():
    truth = np.array([0, 1] * 100)
    texts = make_texts(np.zeros(200, dtype=int))
    pseudo = flip(truth, 0.7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WhetWarning)
        refiner = LabelRefiner("pn", rounds=5, encoder=_Constant(), guard="off")
        refiner.fit(texts, pseudo, truth)
    assert refiner.n_iter_ < 5
    assert "every label is" in refiner.halted_


class _Constant:
    def fit(self, texts):
        return self

    def transform(self, texts):
        return np.ones((len(texts), 1))


def test_labels_in_another_order_than_the_texts_are_refused(two_classes):
    texts, truth, pseudo = two_classes
    frame = pd.DataFrame({"text": texts, "llm": pseudo, "gold": sample_gold(truth, 60)})
    with pytest.raises(WhetError, match="different indexes"):
        LabelRefiner(rounds=1).fit(frame.text, frame.llm, frame.gold.sample(frac=1))
    refiner = LabelRefiner(rounds=1).fit(frame.text, frame.llm, frame.gold)
    assert len(refiner.labels_) == 600


def test_labels_that_differ_in_case_or_spaces_are_pointed_out(two_classes):
    texts, truth, pseudo = two_classes
    named = [("yes" if i % 2 else " Yes") if y else "no" for i, y in enumerate(pseudo)]
    gold = [None if g is None else ("yes" if g else "no") for g in sample_gold(truth, 100)]
    with pytest.warns(WhetWarning, match="differ only in case or spaces"):
        LabelRefiner("pn", rounds=1).fit(texts, named, gold)


def test_a_class_that_all_but_disappears_is_pointed_out():
    truth = np.zeros(400, dtype=int)
    truth[:12] = 1
    texts = make_texts(np.zeros(400, dtype=int))
    pseudo = flip(truth, 0.9)
    refiner = LabelRefiner("pn", theta="oracle", encoder=_Constant(), guard="off")
    with pytest.warns(WhetWarning, match="labels were 1 and .* of the refined ones are"):
        refiner.fit(texts, pseudo, truth)


def test_gold_of_another_type_than_the_labels_is_named(two_classes):
    texts, truth, pseudo = two_classes
    gold = [None if g is None else str(g) for g in sample_gold(truth, 60)]
    with pytest.raises(WhetError, match=r"\(str\) and pseudo-labels are int: convert"):
        LabelRefiner().fit(texts, pseudo, gold)


@BOTH
def test_checked_labels_stand_in_the_result_and_enter_nothing_else(two_classes, method):
    texts, truth, pseudo = two_classes
    gold = sample_gold(truth, 60)
    free = [row for row, label in enumerate(gold) if label is None][:9]
    plain = refine(texts, pseudo, gold, method=method)
    wrong = [1 - plain.labels_[row] for row in free]
    checked = [None] * len(texts)
    for row, label in zip(free, wrong, strict=True):
        checked[row] = label
    had_gold = next(row for row, label in enumerate(gold) if label is not None)
    checked[had_gold] = 1 - gold[had_gold]  # a gold label stands
    refiner = LabelRefiner(method, rounds=1)
    refiner.fit_refine(texts, pseudo, gold, checked_labels=checked)
    assert refiner.estimate_ == plain.estimate_
    np.testing.assert_array_equal(refiner.proba_, plain.proba_)
    assert np.flatnonzero(refiner.labels_ != plain.labels_).tolist() == free
    assert {refiner.reason_[row] for row in free} == {"checked label"}
    assert refiner.reason_[had_gold] == "gold label"
    assert not refiner.suspicion_[free].any()
    assert (refiner.label_proba_[free] == 1).all()
    assert refiner.gold_["checked"] == len(free)
    assert plain.gold_["checked"] == 0
    assert refiner.gold_["uses"] == plain.gold_["uses"]


def test_a_checked_label_must_be_one_of_the_classes(two_classes):
    texts, _, pseudo = two_classes
    checked = [None, "spam", *[None] * (len(texts) - 2)]
    with pytest.raises(WhetError, match="row 1 has the checked label 'spam'"):
        LabelRefiner("pn", rounds=1).fit_refine(texts, pseudo, checked_labels=checked)
    with pytest.raises(WhetError, match="3 checked labels and"):
        LabelRefiner("pn", rounds=1).fit_refine(texts, pseudo, checked_labels=[None] * 3)


def test_accuracies_and_gain_of_all_rows_add_up_where_no_label_is_missing(two_classes):
    """The counted accuracy stands on other rows: subtracted from the predicted one it misleads."""
    texts, truth, pseudo = two_classes
    found = refine(texts, pseudo, sample_gold(truth, 100), guard="off").estimate_
    assert found["annotator"].value != found["annotator, all rows"].value
    apart = found["refined"].value - found["annotator, all rows"].value
    # Each is shrunk to the model by its own variance, so that they add up nearly, not exactly.
    assert apart == pytest.approx(found["gain"].value, abs=0.02)


def test_warnings_of_a_fit_are_kept(two_classes):
    texts, truth, pseudo = two_classes
    refiner = LabelRefiner("tsp", rounds=1)
    with pytest.warns(WhetWarning, match="only 5 gold rows"):
        refiner.fit_refine(texts, pseudo, sample_gold(truth, 5))
    assert [w for w in refiner.warnings_ if w.startswith("only 5 gold rows")]
    refiner.fit_refine(texts, pseudo, sample_gold(truth, 60))
    assert refiner.warnings_ == []
