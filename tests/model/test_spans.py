"""Losses, option scores and span search, by row over all of its windows."""

from __future__ import annotations

import itertools

import pytest
import torch

from mp2.data.batch import MRCBatch, collate
from mp2.data.encode import Encoded, Window
from mp2.model.answer_length import AnswerLength
from mp2.model.spans import best_spans, by_row, log_probs, option_log_probs, option_scores, row_losses

RAGGED = [
    Encoded((Window([2] * 9, options=[(0, 3, 3), (1, 5, 6), (2, 7, 8)], gold=(5, 6)),), 3, 1),
    Encoded((Window([2] * 6, options=[(0, 2, 3), (1, 4, 4)], gold=(2, 3)),), 2, 0),
    # five options spread over two windows; the right one is in the second
    Encoded(
        (
            Window([2] * 8, options=[(0, 2, 2), (1, 4, 4), (2, 6, 6)]),
            Window([2] * 7, options=[(3, 2, 3), (4, 5, 6)], gold=(2, 3)),
        ),
        5,
        3,
    ),
    Encoded((Window([2] * 7, context=(2, 5), no_answer=(1, 1), gold=(3, 4)),)),
]


def _logits(batch: MRCBatch, seed: int = 0) -> torch.Tensor:
    return torch.randn(*batch.ids.shape, 2, generator=torch.Generator().manual_seed(seed))


def test_by_row_is_logsumexp_per_row_and_minus_infinity_without_values() -> None:
    values, rows = torch.tensor([1.0, 2.0, -3.0, 500.0]), torch.tensor([0, 0, 2, 2])
    result = by_row(values, rows, 3)
    assert result[0].item() == pytest.approx(torch.logsumexp(values[:2], 0).item())
    assert result[1].item() == float("-inf")
    assert result[2].item() == pytest.approx(500.0)


def test_probabilities_of_all_windows_of_a_row_sum_to_one_and_padding_has_none() -> None:
    batch = collate(RAGGED)
    probabilities = log_probs(_logits(batch), batch).exp()
    assert probabilities[~batch.mask].sum() == 0
    for row in range(batch.rows):
        torch.testing.assert_close(probabilities[batch.window_row == row].sum((0, 1)), torch.ones(2))


def test_span_loss_of_one_window_is_half_of_start_plus_end_cross_entropy() -> None:
    batch = collate(RAGGED[:2])
    logits = _logits(batch)
    losses, known = row_losses(logits, batch)
    for row, (first, last) in enumerate([(5, 6), (2, 3)]):
        real = logits[row][batch.mask[row]]
        start = torch.nn.functional.cross_entropy(real[:, 0], torch.tensor(first))
        end = torch.nn.functional.cross_entropy(real[:, 1], torch.tensor(last))
        assert losses[row].item() == pytest.approx(((start + end) / 2).item(), rel=1e-5)
    assert known.all()


def test_option_loss_is_cross_entropy_over_the_options_of_all_windows() -> None:
    batch = collate(RAGGED)
    logits = _logits(batch)
    losses, _ = row_losses(logits, batch, "option")
    scores = option_scores(logits, batch)
    for row, answer in ((0, 1), (1, 0), (2, 3)):
        mine = scores[batch.option_row == row]
        expected = torch.nn.functional.cross_entropy(mine, torch.tensor(answer))
        assert losses[row].item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_row_without_gold_has_no_loss_and_no_gradient() -> None:
    batch = collate([RAGGED[0], Encoded((Window([2] * 4, options=[(0, 1, 1), (1, 3, 3)]),), 2, None)])
    logits = _logits(batch).requires_grad_(True)
    for kind in ("span", "option"):
        losses, known = row_losses(logits, batch, kind)  # type: ignore[arg-type]
        assert known.tolist() == [True, False]
        (gradient,) = torch.autograd.grad(losses.sum(), logits)
        assert gradient.isfinite().all() and gradient[1].abs().sum() == 0


def test_ragged_options_never_pick_one_that_is_not_there() -> None:
    batch = collate(RAGGED)
    for seed in range(50):
        logits = _logits(batch, seed)
        logits[:, 0] = 50.0  # the released code's padding option scores token 0 of example 0
        assert [len(options) for options in option_log_probs(logits, batch)] == [3, 2, 5, 0]


def test_two_low_logits_make_no_high_score() -> None:
    batch = collate(RAGGED[:1])
    logits = torch.zeros(1, 9, 2)
    logits[0, 3], logits[0, 5, 0], logits[0, 6, 1] = -5.0, 2.0, 3.0  # released: 25, 6, 0
    assert option_scores(logits, batch).argmax() == 1


@pytest.mark.parametrize("limit", [1, 2, 64])
def test_the_best_span_is_the_best_of_all_spans(limit: int) -> None:
    row = Encoded((Window([2] * 12, context=(3, 9)),))
    batch = collate([row])
    for seed in range(20):
        logits = _logits(batch, seed)
        scores = log_probs(logits, batch)[0]
        spans = [(s, e) for s, e in itertools.product(range(3, 10), repeat=2) if s <= e < s + limit]
        expected = max(spans, key=lambda span: (scores[span[0], 0] + scores[span[1], 1]).item())
        assert best_spans(logits, batch, max_tokens=limit)[0].tokens == expected


def test_with_the_length_of_each_tasks_answers_the_best_span_is_the_best_of_all_by_both() -> None:
    lengths = [AnswerLength(1.0, 0.4), None, AnswerLength(0.0, 0.2)]
    batch = collate([Encoded((Window([2] * 12, context=(3, 9)),))] * 3, [0, 1, 2])
    chosen = set()
    for seed in range(20):
        logits = _logits(batch, seed)
        found = best_spans(logits, batch, lengths)
        for row, length in enumerate(lengths):
            scores = log_probs(logits, batch)[row]
            best = {
                (s, e): (scores[s, 0] + scores[e, 1] + (length.log_shares(9)[e - s] if length else 0)).item()
                for s, e in itertools.product(range(3, 10), repeat=2)
                if s <= e
            }
            expected = max(best, key=best.__getitem__)
            plain = (scores[expected[0], 0] + scores[expected[1], 1]).item()
            assert found[row].tokens == expected
            assert found[row].log_prob == pytest.approx(plain)  # the model's own, whatever the length says
            chosen.add((row, expected))
    assert {e - s for row, (s, e) in chosen if row == 2} == {0}


def test_no_answer_beats_a_span_by_start_and_end_alone() -> None:
    batch = collate([Encoded((Window([2] * 9, context=(3, 8), no_answer=(1, 2)),))])
    logits = torch.zeros(1, 9, 2)
    logits[0, 3, 0] = logits[0, 8, 1] = 4.0
    logits[0, 1, 0] = logits[0, 2, 1] = 3.0
    assert best_spans(logits, batch)[0].tokens == (3, 8)
    assert best_spans(logits, batch, [AnswerLength(1.8, 0.5)])[0].tokens == (3, 8)
    assert best_spans(logits, batch, [AnswerLength(0.0, 0.1)])[0].tokens is None


def test_no_answer_competes_with_the_spans_of_all_windows() -> None:
    windows = tuple(Window([2] * 7, context=(3, 6), no_answer=(1, 2)) for _ in range(2))
    batch = collate([Encoded(windows)])
    logits = torch.zeros(2, 7, 2)
    logits[0, 1, 0] = logits[0, 2, 1] = 3.0
    assert best_spans(logits, batch)[0].tokens is None
    logits[1, 4, 0] = logits[1, 5, 1] = 4.0
    found = best_spans(logits, batch)[0]
    assert (found.window, found.tokens) == (1, (4, 5))
