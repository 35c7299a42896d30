"""Log-probabilities of cell types, by two networks, by the embedding and by the genes."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from concerto_tf._keras import keras, serializable, state_weight


@serializable
class TypeHead(keras.layers.Layer):
    """Tells cell types by what two networks make of a cell, by its embedding and by its genes.

    Each network has a softmax layer behind a ReLU, which is trained. Two linear layers read the
    embedding and the values of the genes; they and the weights of the three voices are set from
    outside (`learn_linear`). Until then they say nothing.

    Args:
        n_types: Number of cell types C.
        width: Width of what the networks give.
        dim: Width d of an embedding.
        n_inputs: Number of values F of a cell.
        seed: Seed of the initial weights.
        **kwargs: Of `keras.layers.Layer`.

    Attributes:
        teacher, student: Softmax layers of the networks.
        units, genes: The layers that read the embedding and the genes.
        voices: How much networks, embedding and genes count [3].

    Example:

    >>> import tensorflow as tf
    >>> from concerto_tf.models.classifier.type_head import TypeHead
    >>> head = TypeHead(2, width=4, dim=2, n_inputs=3)
    >>> _ = head.genes.kernel.assign([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    >>> _ = head.voices.assign([0.0, 0.0, 1.0])
    >>> hidden, z = tf.ones([1, 4]), tf.ones([1, 2])
    >>> log_p = head(hidden, hidden, z, tf.constant([[0.0, 2.0, 0.0]]))
    >>> [round(float(p), 2) for p in tf.exp(log_p)[0]]
    [0.12, 0.88]

    Reference:
        Concerto, equation 12, for the two networks.
    """

    def __init__(
        self, n_types: int, width: int, dim: int, n_inputs: int, *, seed: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.n_types, self.width = int(n_types), int(width)
        self.dim, self.n_inputs = int(dim), int(n_inputs)
        self.seed = int(seed)

        def layer(name: str, start: Any) -> keras.layers.Layer:
            return keras.layers.Dense(
                self.n_types, kernel_initializer=start, dtype=kwargs.get("dtype"), name=name
            )

        def drawn(i: int) -> Any:
            return keras.initializers.GlorotUniform(seed=self.seed * 10_007 + i)

        self.teacher, self.student = layer("teacher", drawn(1)), layer("student", drawn(2))
        self.units, self.genes = layer("units", "zeros"), layer("genes", "zeros")
        self.units.trainable = self.genes.trainable = False
        self.build()

    def build(self, input_shape: Any = None) -> None:
        self.teacher.build((None, self.width))
        self.student.build((None, self.width))
        self.units.build((None, self.dim))
        self.genes.build((None, self.n_inputs))
        self.voices = state_weight(self, "voices", (3,), initializer="ones")
        self.built = True

    def logits(self, teacher: tf.Tensor, student: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """What each network says of each type, two [B, C], of what they give [B, width]."""
        parts = zip((self.teacher, self.student), (teacher, student), strict=True)
        own, other = (layer(tf.nn.relu(tf.cast(z, self.compute_dtype))) for layer, z in parts)
        return own, other

    def of_networks(self, teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
        """Mean log-probabilities of both networks [B, C]."""
        return tf.add_n([tf.nn.log_softmax(z) for z in self.logits(teacher, student)]) / 2

    def of_units(self, z: tf.Tensor) -> tf.Tensor:
        """Log-probabilities by embeddings [B, d]."""
        return tf.nn.log_softmax(self.units(tf.cast(z, self.compute_dtype)))

    def of_genes(self, y: tf.Tensor) -> tf.Tensor:
        """Log-probabilities by the genes [B, C], of the values of cells [B, F]."""
        return tf.nn.log_softmax(self.genes(tf.cast(y, self.compute_dtype)))

    def call(self, teacher: tf.Tensor, student: tf.Tensor, z: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        """The three voices, weighted and added [B, C], not normalized."""
        said = self.of_networks(teacher, student), self.of_units(z), self.of_genes(y)
        voices = tf.cast(tf.convert_to_tensor(self.voices), self.compute_dtype)
        return tf.add_n([voices[i] * one for i, one in enumerate(said)])

    def named_weights(self) -> dict[str, Any]:
        """All weights, by the names in a file."""
        found = {"voices": self.voices}
        for name in ("teacher", "student", "units", "genes"):
            layer = getattr(self, name)
            found |= {f"{name}.kernel": layer.kernel, f"{name}.bias": layer.bias}
        return found

    def compute_output_shape(self, teacher_shape: Any, *others: Any) -> tuple[Any, ...]:
        return (teacher_shape[0], self.n_types)

    def get_config(self) -> dict[str, Any]:
        names = ("n_types", "width", "dim", "n_inputs", "seed")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
