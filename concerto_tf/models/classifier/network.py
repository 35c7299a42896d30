"""Cell types from a pre-trained model: supervised fine-tuning, and the rejection of the unknown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from concerto_tf._keras import (
    accumulation_dtype,
    apply_gradient_step,
    compute_dtype,
    keras,
    replica_count,
    serializable,
    state_weight,
    sum_over_replicas,
)
from concerto_tf._version import __version__
from concerto_tf.errors import InputError
from concerto_tf.models.base import SAVED_FORMAT, STAMPS
from concerto_tf.models.batch_model import BatchModel, compiled
from concerto_tf.models.batches import in_order
from concerto_tf.models.classifier.coarse import Coarse
from concerto_tf.models.classifier.exemplars import Exemplars
from concerto_tf.models.classifier.type_distance import COMPONENTS, type_conformity, type_novelty
from concerto_tf.models.classifier.type_head import TypeHead
from concerto_tf.models.encoder import Teachable, teachable
from concerto_tf.models.presets import Training
from concerto_tf.models.weights import keep_together, load_weights, save_weights
from concerto_tf.novelty import Scale, is_novel
from concerto_tf.records.batch import Batch, Minibatch

#: What the names of the encoder's weights begin with in a file.
_ENCODER, _EXEMPLARS = "encoder.", "exemplars"
_OWN_WEIGHTS = "class_weight type_axes type_mean type_directions score_mean score_width".split()


@serializable
class Classifier(BatchModel):
    """Tells the cell types that labelled cells taught it, and how sure it is.

    Embedding and genes tell types, once they were taught (`learn_linear`), and teacher and student
    of a pre-trained model, each of which gets a softmax layer. Where they are trained both go on
    learning, with the views of the pre-training. Of cells without a label nothing but statistics
    is learned, but for the agreement of both networks about the cells of a target.

    The novelty of a cell comes from cells that were held out of training (`calibrate`): it is the
    share of them that are as unlike the known cell types, or more so; of a known type it is below
    ``alpha`` with a chance of about ``alpha``. Cells that are kept (`Exemplars`) show types as a
    query was measured.

    Args:
        encoder: A pre-trained model, which becomes part of this one.
        classes: Names of the C cell types.
        label_key: What the labels are called: batches hold them as ``label/<label_key>``.
        consistency: Weight lambda of the agreement on target cells.
        calibration, directions: Conformity scores of the held-out cells, each ascending; see
            `type_novelty`.
        together: `concerto_tf.novelty.mean_together` of these cells, ascending.
        nonconformity: What speaks against their types (`of_truth`), ascending.
        coarse: Groups of the types (`Coarse`), or None.
        stated: What `stated_novelty` tells of held-out cells.
        seed: Seed of the initial weights.
        **kwargs: Of `keras.Model`.

    Example:

    >>> import numpy as np, tensorflow as tf
    >>> from concerto_tf.models import Concerto
    >>> from concerto_tf.models.classifier import Classifier
    >>> rng = np.random.default_rng(0)
    >>> label = np.arange(64) % 2
    >>> counts = rng.poisson(1 + 5 * (label[:, None] == np.arange(20) % 2))
    >>> cells = {
    ...     "genes": np.tile(np.arange(20, dtype=np.int32), (64, 1)),
    ...     "values": counts.astype(np.float32), "label/type": label}
    >>> encoder = Concerto([f"gene{i}" for i in range(20)], hidden_units=8, components=0)
    >>> model = Classifier(encoder, ["B", "T"], label_key="type")
    >>> model.compile(learning_rate=0.01)
    >>> data = tf.data.Dataset.from_tensors(cells).repeat()
    >>> history = model.fit(data, steps_per_epoch=10, epochs=3, verbose=0)
    >>> found = model.annotate([cells])
    >>> float(np.mean(found["code"] == label)) > 0.9
    True

    Reference:
        Concerto, equations 12 and 13.
    """

    def __init__(
        self,
        encoder: Teachable,
        classes: Sequence[str],
        *,
        label_key: str = "cell_type",
        consistency: float = 1.0,
        calibration: Sequence[float] = (),
        directions: Sequence[float] = (),
        together: Sequence[float] = (),
        nonconformity: Sequence[float] = (),
        coarse: Coarse | Mapping[str, Any] | None = None,
        stated: Mapping[str, Any] | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        if len(classes) < 2 or len(set(classes)) < len(classes):
            raise InputError(f"A classifier needs two classes or more, each once, not {classes}.")
        self.encoder = teachable(encoder)
        self.classes = tuple(str(name) for name in classes)
        self.label_key = label_key
        self.consistency = float(consistency)
        self.stated = dict(stated or {})
        self.coarse = Coarse.from_config(coarse) if isinstance(coarse, Mapping) else coarse
        self.seed = int(seed)
        # Small differences between probabilities matter: never in half precision.
        self._precision = accumulation_dtype(compute_dtype(self))
        self.head = TypeHead(
            len(self.classes),
            self.encoder.hidden_units,
            self.encoder.embedding_dim,
            sum(one.n_inputs for one in self.encoder.modality_inputs),
            seed=self.seed,
            dtype=self._precision.name,
        )
        self.loss_tracker = keras.metrics.Mean(name="loss")
        self.accuracy = keras.metrics.Mean(name="accuracy")
        self.agreement = keras.metrics.Mean(name="consistency")
        self._annotate_step: Callable[[Batch], dict[str, tf.Tensor]] | None
        self.exemplars: Exemplars | None = None
        #: Says of target cells what they were measured for, where that is not all; not saved.
        self.see_target: Callable[[Batch], Batch] = dict
        self.note_known(None, calibration, directions, together, nonconformity)
        self.build()

    def build(self, input_shape: Any = None) -> None:
        c, features = len(self.classes), self.head.n_inputs
        self.class_weight = state_weight(self, "class_weight", (c,), initializer="ones")
        self.type_axes = state_weight(self, "type_axes", (features, COMPONENTS))
        self.type_mean = state_weight(self, "type_mean", (c, COMPONENTS))
        self.type_directions = state_weight(self, "type_directions", (c, features))
        self.score_mean = state_weight(self, "score_mean", (c, 3))
        self.score_width = state_weight(self, "score_width", (c, 3), initializer="ones")
        keep_together([self.encoder, self.head, *self.metrics])
        self.built = True

    @property
    def recipe(self) -> Training:
        return Training(learning_rate=self.encoder.recipe.finetuning_rate)

    # --- types ------------------------------------------------------------------------------

    def logits(self, batch: Batch, training: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
        """What teacher and student say of each type.

        Args:
            batch: As `ContrastiveModel` describes.
            training: Whether each network sees a view of its own instead of the whole cell.

        Returns:
            Logits of teacher and student, each [B, C], float32.
        """
        return self.head.logits(*self.encoder.represent(batch, training=training))

    def call(self, batch: Batch, training: bool | None = None) -> tf.Tensor:
        return self.outcome(batch)["probabilities"]

    def outcome(self, batch: Batch) -> dict[str, tf.Tensor]:
        """All that is known of whole cells, in plain TensorFlow.

        Args:
            batch: As `ContrastiveModel` describes.

        Returns:
            What `scored` gives, ``score`` [B, 2] (see `type_novelty`) and ``novelty`` [B], the
            p-value; without calibration the probability.
        """
        found = self.scored(batch)
        scale, known = Scale(self.score_mean, self.score_width), (self.calibration, self.directions)
        score, p_value = type_novelty(found["scores"], found["code"], scale, known)
        novelty = p_value if self.calibration else found["probability"]
        return {**found, "score": score, "novelty": novelty}

    def scored(self, batch: Batch) -> dict[str, tf.Tensor]:
        """What is known of whole cells without any to compare them with.

        Returns:
            ``probabilities`` [B, C] of the types, ``code`` int32 [B] and ``probability`` [B] of
            the most probable one, ``scores`` [B, 3] (see `type_conformity`) and ``embedding``
            [B, d], all but the code float32.
        """
        y = self.standardized(batch)
        log_p = self.log_probabilities(batch, y)
        probabilities = tf.cast(tf.nn.softmax(log_p), tf.float32)
        code = tf.argmax(log_p, axis=-1, output_type=tf.int32)
        measured = map(tf.convert_to_tensor, (self.type_axes, self.type_mean, self.type_directions))
        return {
            "probabilities": probabilities,
            "probability": tf.reduce_max(probabilities, axis=-1),
            "code": code,
            "scores": type_conformity(y, tf.cast(log_p, tf.float32), code, *measured),
            "embedding": tf.cast(self.encoder(batch, training=False), tf.float32),
        }

    def log_probabilities(self, batch: Batch, y: tf.Tensor) -> tf.Tensor:
        """What networks, embedding and genes say of each type [B, C], not normalized.

        Args:
            batch: As `ContrastiveModel` describes.
            y: Its `standardized` values [B, F].
        """
        hidden = self.encoder.represent(batch, training=False)
        return self.head(*hidden, self.encoder(batch, training=False), y)

    def standardized(self, batch: Batch) -> tf.Tensor:
        """Values in which cells are compared with the types [B, F], float32."""
        return tf.cast(self.encoder.standardized(batch), tf.float32)

    # --- training ---------------------------------------------------------------------------

    @property
    def metrics(self) -> list[Any]:
        return [self.loss_tracker, self.accuracy, self.agreement]

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        batch, target = data if isinstance(data, tuple) else (data, None)
        agreement = None
        with tf.GradientTape() as tape:
            error, weight = self._supervised(batch, self.logits(batch, training=True))
            # Of the whole minibatch: replicas differ in how many of their cells have a label.
            (total,) = sum_over_replicas(tf.reduce_sum(weight))
            loss = tf.math.divide_no_nan(tf.reduce_sum(error), total)
            if target is not None:
                agreement = self._agreement(*self.logits(self.see_target(target), training=True))
                loss += self.consistency * agreement / replica_count()
        apply_gradient_step(self.optimizer, tape, loss, self.learned_variables)
        self.loss_tracker.update_state(loss * replica_count())
        if agreement is not None:
            self.agreement.update_state(agreement)
        return {metric.name: metric.result() for metric in self.metrics}

    @property
    def learned_variables(self) -> list[Any]:
        """What fine-tuning changes: not the projections that the contrastive loss was taken on."""
        heads = {id(weight) for head in self.encoder.heads for weight in head.trainable_weights}
        return [weight for weight in self.trainable_variables if id(weight) not in heads]

    @staticmethod
    def _agreement(teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
        """Cross-entropy of the student's types against the teacher's (equation 13)."""
        told = tf.stop_gradient(tf.nn.softmax(teacher))
        return tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(told, student))

    def _supervised(
        self, batch: Batch, logits: tuple[tf.Tensor, tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Weighted cross-entropy of both networks together, and the weights [B]."""
        c = len(self.classes)
        label = tf.cast(Minibatch(batch).label(self.label_key), tf.int32)
        known = tf.cast(label >= 0, self._precision)
        truth = tf.one_hot(label, c, dtype=self._precision)
        of_classes = tf.cast(self.class_weight, self._precision)
        weight = known * tf.gather(of_classes, tf.maximum(label, 0))
        errors = [tf.nn.softmax_cross_entropy_with_logits(truth, z) for z in logits]
        right = tf.argmax(tf.add_n([tf.nn.log_softmax(z) for z in logits]), -1, tf.int32) == label
        self.accuracy.update_state(tf.cast(right, self._precision), known)
        return weight * tf.add_n(errors), weight

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        batch = data[0] if isinstance(data, tuple) else data
        error, weight = self._supervised(batch, self.logits(batch))
        total = tf.reduce_sum(weight)
        self.loss_tracker.update_state(tf.math.divide_no_nan(tf.reduce_sum(error), total), total)
        return {metric.name: metric.result() for metric in self.metrics[:2]}

    # --- calibration ------------------------------------------------------------------------

    def balance(self, cells_per_class: Sequence[int] | np.ndarray) -> None:
        """Weighs the types in training by the square root of their rarity.

        Args:
            cells_per_class: Number of cells of each type [C] to learn from.
        """
        count = np.maximum(np.asarray(cells_per_class, np.float64), 1)
        self.class_weight.assign(np.sqrt(count.mean() / count).astype(np.float32))

    def note_known(
        self,
        scale: Scale | None = None,
        calibration: Sequence[float] | np.ndarray = (),
        directions: Sequence[float] | np.ndarray = (),
        together: Sequence[float] | np.ndarray = (),
        nonconformity: Sequence[float] | np.ndarray = (),
    ) -> None:
        """Takes held-out cells as those that others are compared with; none of them by default.

        Args:
            scale: Of their scores by type.
            calibration, directions, together, nonconformity: As in the constructor.
        """
        if scale is not None:
            self.score_mean.assign(scale.mean)
            self.score_width.assign(scale.width)
        self.calibration = tuple(float(score) for score in calibration)
        self.directions = tuple(float(score) for score in directions)
        self.together = tuple(float(score) for score in together)
        self.nonconformity = tuple(float(score) for score in nonconformity)
        self.forget_steps()

    def forget_steps(self) -> None:
        """Compiles anew what has as a constant what was changed."""
        self._annotate_step = None

    def rejected(self, p_value: Any, alpha: float) -> Any:
        """Which cells are unknown at an error rate, by their novelty; see `is_novel`."""
        return is_novel(p_value, alpha, len(self.calibration))

    def annotate(
        self, data: Iterable[Batch], measured: Mapping[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """What `outcome` says of cells, in the order of the input.

        Args:
            data: Batches of cells; as for `ContrastiveModel.embed`.
            measured: Which genes of the vocabulary were measured at all, bool [G] by modality.

        Returns:
            The entries of `outcome` for all cells.
        """
        if self._annotate_step is None:
            self._annotate_step = compiled(self.outcome)
        return in_order(self._annotate_step, data, measured)

    # --- files ------------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        return {
            "concerto_tf": __version__,
            "saved_format": SAVED_FORMAT,
            "name": self.name,
            "method": keras.utils.get_registered_name(type(self.encoder)),
            "method_module": type(self.encoder).__module__,
            "encoder": self.encoder.get_config(),
            "classes": list(self.classes),
            "label_key": self.label_key,
            "consistency": self.consistency,
            "calibration": list(self.calibration),
            "directions": list(self.directions),
            "together": list(self.together),
            "nonconformity": list(self.nonconformity),
            **({"coarse": self.coarse.get_config()} if self.coarse else {}),
            **({"stated": self.stated} if self.stated else {}),
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Classifier:
        config = dict(config)
        name, _ = config.pop("method"), config.pop("method_module", None)
        method = keras.utils.get_registered_object(name)
        if keras.Model not in getattr(method, "__mro__", ()):
            raise ValueError(f"there is no encoder {name}; import the module that registers it")
        encoder = method.from_config(config.pop("encoder"))
        return cls(encoder, **{key: value for key, value in config.items() if key not in STAMPS})

    def get_compile_config(self) -> None:
        return None

    def own_weights(self) -> dict[str, Any]:
        """What it has beside its encoder, by the names in a file."""
        own = {name: getattr(self, name) for name in _OWN_WEIGHTS}
        return own | {f"head.{name}": of for name, of in self.head.named_weights().items()}

    def save_own_variables(self, store: Any) -> None:
        of_encoder: dict[str, Any] = {}
        save_weights(self.encoder, of_encoder)
        for name, value in of_encoder.items():
            store[f"{_ENCODER}{name}"] = value
        for name, weight in self.own_weights().items():
            store[name] = np.array(tf.convert_to_tensor(weight))
        if self.exemplars is not None:
            store[_EXEMPLARS] = self.exemplars.pack()

    def load_own_variables(self, store: Any) -> None:
        names = list(store.keys())
        load_weights(
            self.encoder,
            {name.removeprefix(_ENCODER): store[name] for name in names if _ENCODER in name},
        )
        for name, weight in self.own_weights().items():
            if name not in names:
                raise ValueError(f"there are no weights {name!r}")
            weight.assign(np.array(store[name]))
        if _EXEMPLARS in names:
            self.exemplars = Exemplars.unpack(np.array(store[_EXEMPLARS]))
            self.exemplars.check(len(self.classes), self.encoder.modality_inputs)
