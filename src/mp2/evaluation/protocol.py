"""The true few-shot protocol: who is train, who is dev, who is test, for one task and one seed.

k rows per label for train and as many for dev come from the task's pool, without a shared text; the test
split is touched for the final score alone (paper section 4.1). A smaller test set is one fixed subset, the
same for every method and seed. Settings are chosen on upstream tasks, whose splits ``train`` and ``dev``
then stand in for ``pool`` and ``test``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mp2.data.cache import content_key
from mp2.data.encode import Encoder
from mp2.data.prepare import PreparedTask
from mp2.data.sampling import few_shot
from mp2.model.checkpoint import Base
from mp2.tasks.metrics import METRICS
from mp2.tasks.render import MRCExample
from mp2.tasks.spec import TaskSpec
from mp2.tuning.adapter import Adapter, compose
from mp2.tuning.course import Shots

TEST_SEED = 20230709
SPLITS: tuple[str, str] = ("pool", "test")


@dataclass(frozen=True, slots=True)
class Draw:
    """Train and dev rows of one seed; ``key`` is a hash of which rows they are."""

    train: list[MRCExample]
    dev: list[MRCExample]
    key: str


class FewShotTask:
    """A task with its pool and its test rows, which are chosen and encoded once.

    Args:
        prepared: Its prepared splits.
        encoder: Makes the text encoder for a number of prompt slots.
        test_rows: Test rows to use, a fixed random subset; 0 for all.
        splits: Where train and dev rows are drawn from, and which rows are the test.
    """

    def __init__(
        self,
        prepared: PreparedTask,
        encoder: Callable[[int], Encoder],
        test_rows: int = 0,
        splits: tuple[str, str] = SPLITS,
    ) -> None:
        self.spec: TaskSpec = prepared.spec
        self._pool, test = map(prepared.split, splits)
        self._encoder = encoder
        order = np.random.default_rng(TEST_SEED).permutation(len(test)).tolist()
        chosen = sorted(order[:test_rows] if test_rows else order)
        self.test_examples = test.examples(chosen)
        self.test_key = content_key(len(test), chosen, [example.gold_texts for example in self.test_examples])
        self._test: dict[int, Shots] = {}

    def draw(self, seed: int, shots: int | None = None) -> Draw:
        """Train and dev rows of a seed.

        Args:
            seed: Seed of the draw.
            shots: Rows per label, or in all for tasks without labels; the protocol's own when None.

        Raises:
            DataError: The pool is too small.
        """
        train, dev = few_shot(
            self._pool.labels,
            shots=shots,
            seed=seed,
            n_labels=len(self.spec.labels),
            groups=self._pool.groups,
            names=self.spec.labels,
        )
        key = content_key(len(self._pool), train, dev)
        return Draw(self._pool.examples(train), self._pool.examples(dev), key)

    def test(self, reserve: int) -> Shots:
        """Test rows, encoded with room for prompt slots; kept for the next run."""
        if reserve not in self._test:
            self._test[reserve] = Shots(self.test_examples, self._encoder(reserve)(self.test_examples))
        return self._test[reserve]


def test_scores(adapter: Adapter, base: Base, task: FewShotTask) -> list[float]:
    """Score of every test row under an adapter, in [0, 1]."""
    composed = compose(adapter, base)
    test = task.test(composed.reserve)
    answers = composed.answers(test.examples, test.rows)
    one = METRICS[task.spec.metric or "accuracy"]
    return [
        one(answer.text, example.gold_texts) for answer, example in zip(answers, test.examples, strict=True)
    ]
