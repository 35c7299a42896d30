"""How long to train, from the size of the data alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

#: Steps below which a model that starts at random is untrained, whatever the data.
MIN_STEPS = 300
#: Passes over the data that atlases get, as in the paper; small data gets more (`MIN_STEPS`).
MIN_EPOCHS = 3
#: Rounds that a training is reported and saved in, at most: on small data an epoch is a moment.
MAX_ROUNDS = 25
#: Steps of a round, about: what is lost when a training of an atlas is killed is minutes.
ROUND_STEPS = 1000


@dataclass(frozen=True)
class Schedule:
    """A training as Keras sees it: rounds, each of several passes over the data or a part of one.

    Attributes:
        batch_size: Cells per minibatch, over all replicas.
        epochs: Passes over the data.
        steps_per_epoch: Minibatches of a pass.
        steps_per_round: Minibatches that Keras counts as one epoch.
        rounds: Number of rounds.
    """

    batch_size: int
    epochs: int
    steps_per_epoch: int
    steps_per_round: int
    rounds: int

    @property
    def steps(self) -> int:
        """Minibatches of the whole training."""
        return self.rounds * self.steps_per_round

    @property
    def rounds_per_epoch(self) -> int:
        """Rounds of a pass over much data; 1 where a round is a pass or several."""
        return max(1, round(self.steps_per_epoch / self.steps_per_round))

    def passes(self, rounds: int) -> float:
        """Passes over the data in a number of rounds."""
        return min(self.epochs, rounds * self.steps_per_round / self.steps_per_epoch)


def plan_training(
    n_cells: int,
    epochs: int | None = None,
    batch_size: int | None = None,
    replicas: int = 1,
    most_epochs: int | None = None,
) -> Schedule:
    """Chooses how long to train.

    Args:
        n_cells: Number of cells.
        epochs: Passes over the data; 0 for none. ``None`` for as many as the data's size calls
            for: enough for 300 steps on small data, 3 on an atlas.
        batch_size: Cells per minibatch over all replicas; ``None`` for 256, or all cells where
            there are fewer.
        replicas: Number of replicas, of which the batch size is made a multiple.
        most_epochs: Passes over the data where ``epochs`` is ``None``, at most.

    Returns:
        The plan.

    Example:

    >>> from concerto_tf.models.fitting.schedule import plan_training
    >>> plan = plan_training(2638)
    >>> plan.epochs, plan.steps
    (30, 300)
    >>> plan_training(1_000_000).epochs
    3
    """
    batch = min(batch_size or 256, n_cells)
    batch = max(replicas, batch // replicas * replicas)
    per_epoch = max(1, n_cells // batch)
    if epochs == 0:
        return Schedule(batch, 0, per_epoch, per_epoch, 0)
    if epochs is None:
        epochs = max(MIN_EPOCHS, min(math.ceil(MIN_STEPS / per_epoch), most_epochs or MIN_STEPS))
        per_round = math.ceil(epochs / MAX_ROUNDS)
        epochs = math.ceil(epochs / per_round) * per_round
    else:
        # The number asked for is kept exactly, so rounds are a divisor of it that leaves several.
        least = math.ceil(epochs / MAX_ROUNDS) if per_epoch < 50 else 1
        least = min(least, max(1, ROUND_STEPS // per_epoch))
        fitting = [n for n in range(least, 2 * least + 1) if epochs % n == 0]
        per_round = fitting[0] if fitting else 1
    # Equal parts of a pass that is long, the last of which may begin the next pass.
    parts = math.ceil(per_epoch / ROUND_STEPS)
    steps = per_round * per_epoch if parts == 1 else math.ceil(per_epoch / parts)
    return Schedule(batch, epochs, per_epoch, steps, epochs // per_round * parts)
