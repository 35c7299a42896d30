"""How long to train, for data of any size."""

from __future__ import annotations

import pytest

from concerto_tf._keras import keras
from concerto_tf.models import METHODS, Concerto, DenseModel, Ensemble
from concerto_tf.models.asked import model_of_two_genes
from concerto_tf.models.fitting.schedule import (
    MAX_ROUNDS,
    MIN_EPOCHS,
    MIN_STEPS,
    ROUND_STEPS,
    plan_training,
)

SIZES = [10, 11, 37, 100, 255, 256, 257, 300, 511, 512, 700, 2638, 10_000, 70_001, 1_300_000]


@pytest.mark.parametrize("replicas", [1, 2, 3, 8])
@pytest.mark.parametrize("n_cells", SIZES)
def test_the_plan_is_consistent(n_cells: int, replicas: int) -> None:
    for epochs in (None, 1, 2, 29, 101):
        for batch_size in (None, 2, 64, 10**9):
            plan = plan_training(n_cells, epochs, batch_size, replicas)
            assert 2 <= plan.batch_size <= n_cells or plan.batch_size == replicas
            assert plan.batch_size % replicas == 0
            assert plan.batch_size <= max(batch_size or 256, replicas)
            per_epoch = n_cells // plan.batch_size
            assert plan.steps_per_epoch == per_epoch > 0
            # Whole passes, or equal parts of one: a few steps more than asked for, never less.
            assert 0 <= plan.steps - plan.epochs * per_epoch < plan.rounds
            if plan.steps_per_round >= per_epoch:
                assert plan.steps_per_round % per_epoch == 0
                assert plan.steps == plan.epochs * per_epoch
            assert plan.steps_per_round <= 2 * ROUND_STEPS
            assert plan.passes(plan.rounds) == plan.epochs
            if epochs is not None:
                assert plan.epochs == epochs


@pytest.mark.parametrize("n_cells", SIZES)
def test_small_data_gets_enough_steps_and_an_atlas_three_passes(n_cells: int) -> None:
    plan = plan_training(n_cells)
    assert plan.steps >= MIN_STEPS and plan.epochs >= MIN_EPOCHS
    # and not much more: rounding up to whole rounds and epochs is all there is on top.
    least = max(MIN_EPOCHS, -(-MIN_STEPS // (n_cells // plan.batch_size)))
    assert least <= plan.epochs < least + max(1, plan.steps_per_round // plan.steps_per_epoch)
    assert plan.rounds <= MAX_ROUNDS or plan.steps_per_round > ROUND_STEPS / 2


@pytest.mark.parametrize("n_cells", SIZES)
def test_a_limit_on_passes_binds_on_small_data_alone(n_cells: int) -> None:
    free, limited = plan_training(n_cells), plan_training(n_cells, most_epochs=30)
    assert limited == free if free.epochs <= 30 else limited.epochs == 30
    # What is asked for is kept, and an atlas is passed over three times whatever the limit.
    assert plan_training(n_cells, epochs=100, most_epochs=30).epochs == 100
    assert plan_training(n_cells, most_epochs=1).epochs == MIN_EPOCHS


def test_no_passes_are_no_rounds() -> None:
    plan = plan_training(2638, epochs=0)
    assert (plan.epochs, plan.rounds, plan.steps, plan.passes(0)) == (0, 0, 0, 0)
    assert plan.batch_size == plan_training(2638).batch_size


def test_models_that_start_from_components_pass_over_few_cells_less_often() -> None:
    genes = [f"gene{i}" for i in range(4)]
    limits = {name: cls(genes).recipe.most_epochs for name, cls in METHODS.items()}
    assert limits == dict.fromkeys(METHODS, 30)
    assert Ensemble([Concerto(genes), Concerto(genes, seed=1)]).recipe.most_epochs == 30
    for name in METHODS:
        assert model_of_two_genes(name, "paper").recipe.most_epochs is None
    encoder = keras.Sequential([keras.layers.Dense(3)])
    assert DenseModel(genes, backbone=encoder).recipe.most_epochs is None


def test_more_cells_never_mean_more_passes() -> None:
    epochs = [plan_training(n).epochs for n in SIZES if n % 256 == 0 or n > 2000]
    assert epochs == sorted(epochs, reverse=True)
    assert plan_training(1_000_000).epochs == MIN_EPOCHS


def test_rounds_of_small_data_are_few() -> None:
    assert plan_training(300, epochs=100).rounds <= MAX_ROUNDS
    assert plan_training(300, epochs=20).rounds == 20


def test_a_prime_number_of_epochs_still_has_rounds() -> None:
    plan = plan_training(2638, epochs=101)
    assert plan.epochs == 101 and plan.rounds > 20


def test_a_pass_over_an_atlas_is_many_rounds() -> None:
    plan = plan_training(1_300_000, batch_size=256)
    assert (plan.steps_per_epoch, plan.rounds_per_epoch, plan.rounds) == (5078, 6, 18)
    assert plan.steps_per_round == 847
    assert plan.passes(6) == pytest.approx(1, abs=1e-3)
