"""P(label | class) from few gold rows, and what labels are then worth as evidence."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from conftest import flip
from whet.classify.annotator import FLOOR, class_prior, evidence, label_model, log_softmax
from whet.classify.inputs import check_confidence
from whet.errors import WhetError


def some_gold(truth, n):
    """Return the gold codes of the first rows, -1 elsewhere."""
    return np.where(np.arange(len(truth)) < n, truth, -1)


def drawn(prior, table, n, seed=0):
    """Classes, and labels that are drawn given the class."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(len(prior), n, p=prior)
    labels = (rng.random(n)[:, None] > np.cumsum(table[truth], axis=1)).sum(axis=1)
    return truth, labels


def test_counts_and_prior_rows_by_hand():
    labels = np.array([0, 0, 0, 1, 1, -1])
    gold = np.array([0, 0, 1, 1, -1, 1])
    # Right 3 of 4, so that the prior's accuracy is (3 + 4 * 0.75) / (4 + 4) = 0.75; each row
    # holds its counts, (2, 0) and (1, 1), and three rows of (0.75, 0.25) or (0.25, 0.75).
    np.testing.assert_allclose(
        label_model(labels, gold, 2), [[4.25 / 5, 0.75 / 5], [1.75 / 5, 3.25 / 5]]
    )


def test_a_class_without_gold_has_the_prior_row():
    labels = np.array([0, 0, 1, 2, 2])
    gold = np.array([0, 0, 1, -1, -1])
    # Right 3 of 3: accuracy 6/7. The other seventh goes by the marginals 2 + 1/2 and 1 + 1/2.
    np.testing.assert_allclose(
        label_model(labels, gold, 3)[2], [2.5 / 4 / 7, 1.5 / 4 / 7, 6 / 7], rtol=1e-12
    )


def test_without_gold_every_class_has_the_prior_row():
    labels = np.array([0, 0, 0, 1])
    table = label_model(labels, np.full(4, -1), 2)
    np.testing.assert_allclose(table, [[0.75, 0.25], [0.25, 0.75]])


def test_only_rows_that_are_labelled_and_gold_are_counted():
    labels, gold = np.array([0, 1, 0, 1]), np.array([0, 1, 1, -1])
    more = np.append(labels, [-1, -1]), np.append(gold, [0, 1])
    np.testing.assert_array_equal(label_model(*more, 2), label_model(labels, gold, 2))


@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize("kind", ["good", "random", "inverted", "constant"])
@pytest.mark.parametrize("n_gold", [0, 3, 50])
def test_no_vote_counts_against_its_own_class(k, kind, n_gold):
    truth = np.random.default_rng(0).integers(0, k, 300)
    labels = {
        "good": flip(truth, 0.9, k),
        "random": np.random.default_rng(1).integers(0, k, 300),
        "inverted": (truth + 1) % k,
        "constant": np.zeros(300, dtype=int),
    }[kind]
    table = label_model(labels, some_gold(truth, n_gold), k)
    assert (table > 0).all()
    own = np.diag(table)
    off = ~np.eye(k, dtype=bool)
    assert (table / own)[off].max() <= 1 / FLOOR + 1e-12


def test_an_annotator_that_looks_inverted_is_held_at_the_floor():
    truth = np.array([0, 1] * 25)
    table = label_model(1 - truth, truth, 2)
    # Right 0 of 50: accuracy 3/54, and rows of 25 + 3 hold 3 * 3/54 on the diagonal.
    own = 3 * 3 / 54 / 28
    np.testing.assert_allclose(np.diag(table), own)
    np.testing.assert_allclose([table[0, 1], table[1, 0]], own / 1.5)


def test_the_table_is_found_from_many_gold_rows():
    table = np.array([[0.8, 0.15, 0.05], [0.1, 0.7, 0.2], [0.05, 0.05, 0.9]])
    truth, labels = drawn([0.5, 0.3, 0.2], table, 60_000)
    np.testing.assert_allclose(label_model(labels, truth, 3), table, atol=0.01)


def test_a_missing_label_is_no_evidence():
    truth = np.random.default_rng(0).integers(0, 3, 200)
    labels = flip(truth, 0.7, 3)
    labels[::2] = -1
    found = evidence(labels[:, None], some_gold(truth, 50), 3)
    assert (found[::2] == 0).all()
    assert (found[1::2] < 0).all()


def test_evidence_is_the_log_of_the_label_model():
    truth = np.random.default_rng(0).integers(0, 3, 200)
    labels, gold = flip(truth, 0.7, 3), some_gold(truth, 50)
    table = label_model(labels, gold, 3)
    found = evidence(labels[:, None], gold, 3)
    for row in range(200):
        for c in range(3):
            assert found[row, c] == np.log(table[c, labels[row]])


def test_annotators_add_up():
    truth = np.random.default_rng(0).integers(0, 3, 200)
    votes = np.stack([flip(truth, a, 3, seed) for seed, a in enumerate((0.6, 0.7, 0.8))], axis=1)
    votes[::5, 1] = -1
    gold = some_gold(truth, 50)
    alone = [evidence(votes[:, [m]], gold, 3) for m in range(3)]
    np.testing.assert_allclose(evidence(votes, gold, 3), np.sum(alone, axis=0))


def test_confidence_counts_by_rank_and_averages_to_one():
    truth = np.random.default_rng(0).integers(0, 2, 200)
    labels, gold = flip(truth, 0.7), some_gold(truth, 50)
    labels[:40] = -1
    sure = np.random.default_rng(1).random((200, 1))
    sure[:40] = np.nan
    plain = evidence(labels[:, None], gold, 2)
    found = evidence(labels[:, None], gold, 2, sure)
    assert (found[:40] == 0).all()
    times = found[40:] / plain[40:]
    np.testing.assert_allclose(times[:, 0], times[:, 1])
    assert times.mean() == pytest.approx(1)
    assert (times > 0).all()
    assert (times < 2).all()
    np.testing.assert_array_equal(times[:, 0].argsort(), sure[40:, 0].argsort())
    for other in (100 * sure, np.exp(5 * sure), sure - 7):
        np.testing.assert_allclose(evidence(labels[:, None], gold, 2, other), found)


def test_the_same_confidence_everywhere_changes_nothing():
    truth = np.random.default_rng(0).integers(0, 2, 99)
    labels, gold = flip(truth, 0.7)[:, None], some_gold(truth, 50)
    same = evidence(labels, gold, 2, np.full((99, 1), 0.9))
    np.testing.assert_allclose(same, evidence(labels, gold, 2))


def test_confidence_is_ranked_within_each_annotator():
    truth = np.random.default_rng(0).integers(0, 2, 100)
    votes = np.stack([flip(truth, 0.7, seed=1), flip(truth, 0.7, seed=2)], axis=1)
    gold = some_gold(truth, 50)
    sure = np.random.default_rng(1).random((100, 2))
    alone = [evidence(votes[:, [m]], gold, 2, sure[:, [m]]) for m in range(2)]
    loud = sure * [1, 1000]
    np.testing.assert_allclose(evidence(votes, gold, 2, loud), alone[0] + alone[1])


def test_a_label_without_confidence_counts_as_it_does_alone():
    truth = np.random.default_rng(0).integers(0, 2, 200)
    labels, gold = flip(truth, 0.7)[:, None], some_gold(truth, 50)
    sure = np.random.default_rng(1).random((200, 1))
    sure[::3] = np.nan
    plain, found = evidence(labels, gold, 2), evidence(labels, gold, 2, sure)
    np.testing.assert_array_equal(found[::3], plain[::3])
    times = (found / plain)[:, 0]
    assert times.mean() == pytest.approx(1)
    rest = np.arange(200) % 3 != 0
    np.testing.assert_array_equal(times[rest].argsort(), sure[rest, 0].argsort())
    nothing = np.full((200, 1), np.nan)
    np.testing.assert_array_equal(evidence(labels, gold, 2, nothing), plain)


def test_confidence_may_be_unknown_for_some_labels_but_not_for_all():
    votes = np.array([[0, 1], [1, 1], [-1, 0]])
    some = np.array([[0.9, np.nan], [np.nan, 0.2], [np.nan, 0.1]])
    np.testing.assert_array_equal(check_confidence(some, votes), some)
    given = {"gpt": [0.9, None, None], "llama": [None, 0.2, 0.1]}
    np.testing.assert_array_equal(check_confidence(given, votes, ["gpt", "llama"]), some)
    with pytest.raises(WhetError, match=r"row 0 has a label and no confidence.*'llama'"):
        check_confidence(given | {"llama": [None] * 3}, votes, ["gpt", "llama"])
    with pytest.raises(WhetError, match="like all labels of annotator 2: leave"):
        check_confidence(some * [1, np.nan], votes)
    silent = np.array([[0, -1], [1, -1], [1, -1]])
    assert np.isnan(check_confidence(some * [1, np.nan], silent)[:, 1]).all()


def test_an_annotator_that_never_answers_is_no_evidence():
    labels = np.full((20, 1), -1)
    gold = some_gold(np.arange(20) % 2, 10)
    assert (evidence(labels, gold, 2) == 0).all()
    assert (evidence(labels, gold, 2, np.full((20, 1), np.nan)) == 0).all()


@pytest.mark.parametrize("prior", [[0.8, 0.2], [0.1, 0.6, 0.3]])
def test_the_prior_is_found_although_labels_are_wrong(prior):
    k = len(prior)
    table = np.full((k, k), 0.3 / (k - 1))
    np.fill_diagonal(table, 0.7)
    _, labels = drawn(prior, table, 50_000)
    told = np.log(table).T[labels]
    gold = np.full(50_000, -1)
    gold[:20_000] = np.random.default_rng(1).choice(k, 20_000, p=prior)
    np.testing.assert_allclose(class_prior(told, gold), prior, atol=0.01)
    # Without gold the labels count for nothing, and two rows spread over the classes remain.
    np.testing.assert_allclose(class_prior(told, np.full(50_000, -1)), 1 / k)


def test_the_prior_weighs_labels_and_gold_alike():
    table = np.array([[0.8, 0.2], [0.2, 0.8]])
    _, labels = drawn([0.7, 0.3], table, 100_000)
    gold = np.full(100_000, -1)
    gold[:100] = 1  # the gold rows say something else than the labels
    wanted = (np.array([0.7, 0.3]) * 100 + [0, 100] + 1) / 202
    np.testing.assert_allclose(class_prior(np.log(table).T[labels], gold), wanted, atol=0.01)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(2, 5), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_any_votes_and_gold_give_finite_evidence_and_a_prior(k, m, seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 30))
    votes = rng.integers(-1, k, (n, m))
    gold = np.where(rng.random(n) < rng.random(), rng.integers(0, k, n), -1)
    sure = rng.random((n, m)) if rng.random() < 0.5 else None
    if sure is not None:
        sure[rng.random((n, m)) < 0.2] = np.nan
    told = evidence(votes, gold, k, sure)
    assert np.isfinite(told).all()
    assert (told <= 0).all()
    assert (told[(votes == -1).all(axis=1)] == 0).all()
    prior = class_prior(told, gold)
    assert (prior > 0).all()
    assert prior.sum() == pytest.approx(1)


def test_log_softmax_is_a_distribution():
    scores = np.random.default_rng(0).normal(scale=50, size=(4, 3, 5))
    np.testing.assert_allclose(logsumexp(log_softmax(scores), axis=-1), 0, atol=1e-12)
