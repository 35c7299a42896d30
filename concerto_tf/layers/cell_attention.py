"""A transformer encoder whose tokens are cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from concerto_tf._keras import (
    accumulation_dtype,
    compute_dtype,
    gather_over_replicas,
    keras,
    serializable,
)
from concerto_tf.errors import checked_whole
from concerto_tf.layers.directions import take_directions

_EPSILON = 1e-3


@serializable
class CellTransformerLayer(keras.layers.Layer):
    """Cells attend to cells: multi-head attention and a feed-forward network, both residual.

    The tokens are the rows of a minibatch [B, d], so attention is between cells (B x B), on **all
    replicas** of a distribution strategy: two replicas compute what one does on the same global
    batch. There are no positions; another order of the cells gives the same in that order.

    What comes out depends on which cells are in the minibatch. With ``context`` it does not: every
    cell then attends to the cells of the context and to itself alone.

    Args:
        heads: Number of attention heads h.
        key_dim: Width of the queries, keys and values of a head.
        units: Width of the feed-forward network's hidden layer.
        normalize_first: Layer normalization before each of the two networks instead of after its
            residual connection, as the paper has it. The input then has a path on which it passes
            unchanged.
        identity_start: Whether both networks begin at zero; with ``normalize_first`` the new layer
            gives back its input.
        seed: Seed of the initial weights.
        **kwargs: Of `keras.layers.Layer`.

    Call arguments:
        x: Cells [B, d], float.
        context: Cells [M, d] to attend to; ``None``: those of the minibatch to each other.
        itself: Whether a cell attends to itself beside the context.

    Returns:
        Cells [B, d].

    Example:

    >>> import tensorflow as tf
    >>> from concerto_tf.layers import CellTransformerLayer
    >>> layer = CellTransformerLayer(heads=2, key_dim=4, units=16)
    >>> cells = tf.random.normal([5, 8], seed=0)
    >>> layer(cells).shape.as_list()
    [5, 8]

    Attending to a fixed context, a cell is the same on its own:

    >>> together, alone = layer(cells, context=cells), layer(cells[:1], context=cells)
    >>> float(tf.reduce_max(tf.abs(together[:1] - alone))) < 1e-5
    True

    Reference:
        CICL, equations 3 to 7.
    """

    def __init__(
        self,
        heads: int = 4,
        key_dim: int = 32,
        units: int = 1024,
        normalize_first: bool = False,
        identity_start: bool = False,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.heads = checked_whole("heads", heads)
        self.key_dim = checked_whole("key_dim", key_dim)
        self.units = checked_whole("units", units)
        self.normalize_first = bool(normalize_first)
        self.identity_start = bool(identity_start)
        self.seed = int(seed)

    def build(self, input_shape: Any) -> None:
        width = int(tuple(input_shape)[-1])
        inner = self.heads * self.key_dim
        shapes = {
            "query": (width, inner),
            "key": (width, inner),
            "value": (width, inner),
            "output": (inner, width),
            "hidden": (width, self.units),
            "back": (self.units, width),
        }
        for i, (name, shape) in enumerate(shapes.items()):
            ends = name in ("output", "back")
            initializer: Any = keras.initializers.GlorotUniform(seed=self.seed * 10 + i)
            if ends and self.identity_start:
                initializer = "zeros"
            weight = self.add_weight(name=name, shape=shape, initializer=initializer)
            setattr(self, f"_{name}", weight)
        self._norms = [
            tuple(
                self.add_weight(name=f"{part}_{kind}", shape=(width,), initializer=initializer)
                for kind, initializer in (("gamma", "ones"), ("beta", "zeros"))
            )
            for part in ("attention", "feedforward")
        ]
        super().build(input_shape)

    def call(
        self, x: tf.Tensor, context: tf.Tensor | None = None, itself: bool = True
    ) -> tf.Tensor:
        dtype = compute_dtype(self)
        x = tf.cast(x, dtype)
        if context is not None:
            context = tf.cast(context, dtype)
        attention_norm, feedforward_norm = self._norms
        if self.normalize_first:
            others = None if context is None else _normalize(context, *attention_norm)
            x += self._attend(_normalize(x, *attention_norm), others, itself)
            return x + self._feed_forward(_normalize(x, *feedforward_norm))
        x = _normalize(x + self._attend(x, context, itself), *attention_norm)
        return _normalize(x + self._feed_forward(x), *feedforward_norm)

    def _attend(self, x: tf.Tensor, context: tf.Tensor | None, itself: bool) -> tf.Tensor:
        """Equations 3 and 4 [B, d]."""
        query = self._of_heads(x, self._query) * self.key_dim**-0.5
        if context is None:
            key, value = (
                self._of_heads(gather_over_replicas(tf.matmul(x, tf.cast(weight, x.dtype))))
                for weight in (self._key, self._value)
            )
        else:
            key, value = (self._of_heads(context, w) for w in (self._key, self._value))
        score = tf.matmul(query, key, transpose_b=True)
        if context is None or not itself:
            mixed = tf.matmul(_softmax(score), value)
        else:
            own_key, own_value = (self._of_heads(x, w) for w in (self._key, self._value))
            own = tf.reduce_sum(query * own_key, axis=-1, keepdims=True)
            weight = _softmax(tf.concat([score, own], axis=-1))
            mixed = tf.matmul(weight[..., :-1], value) + weight[..., -1:] * own_value
        heads = tf.reshape(tf.transpose(mixed, [1, 0, 2]), [-1, self.heads * self.key_dim])
        return tf.matmul(heads, tf.cast(self._output, x.dtype))

    def _of_heads(self, x: tf.Tensor, weight: Any = None) -> tf.Tensor:
        """Rows, multiplied with a weight where one is given, by head [h, rows, key_dim]."""
        if weight is not None:
            x = tf.matmul(x, tf.cast(weight, x.dtype))
        return tf.transpose(tf.reshape(x, [-1, self.heads, self.key_dim]), [1, 0, 2])

    def _feed_forward(self, x: tf.Tensor) -> tf.Tensor:
        """Equation 6 [B, d]."""
        hidden = tf.nn.relu(tf.matmul(x, tf.cast(self._hidden, x.dtype)))
        return tf.matmul(hidden, tf.cast(self._back, x.dtype))

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "heads": self.heads,
            "key_dim": self.key_dim,
            "units": self.units,
            "normalize_first": self.normalize_first,
            "identity_start": self.identity_start,
            "seed": self.seed,
        }


@serializable
class CellTransformer(keras.layers.Layer):
    """A transformer encoder whose tokens are the cells of a minibatch.

    Args:
        depth: Number of `CellTransformerLayer`.
        width: Width of the tokens, which are then a linear projection of the input; ``None``: the
            input itself, as in the paper.
        heads, key_dim, units, normalize_first: As in `CellTransformerLayer`.
        identity_start: Likewise; the encoder then begins as its projection.
        seed: Seed of the initial weights.
        **kwargs: Of `keras.layers.Layer`.

    Call arguments:
        x: Cells [B, n], float.
        context: Cells [M, n] to attend to, which attend to each other; ``None``: the cells of the
            minibatch attend to each other.

    Returns:
        Embeddings [B, width].

    Example:

    >>> import tensorflow as tf
    >>> from concerto_tf.layers import CellTransformer
    >>> encoder = CellTransformer(depth=2, width=8, heads=2, key_dim=4, units=16)
    >>> encoder(tf.ones([5, 50])).shape.as_list()
    [5, 8]

    Reference:
        CICL, section 2.2.2.
    """

    def __init__(
        self,
        depth: int = 4,
        width: int | None = 128,
        heads: int = 4,
        key_dim: int = 32,
        units: int = 1024,
        normalize_first: bool = False,
        identity_start: bool = False,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.depth = checked_whole("depth", depth, least=0)
        self.width = None if width is None else checked_whole("width", width)
        self.seed = int(seed)
        self._of_layers: dict[str, Any] = {
            "heads": heads,
            "key_dim": key_dim,
            "units": units,
            "normalize_first": normalize_first,
            "identity_start": identity_start,
        }
        # As Keras hands it over: a name, a policy or its configuration.
        dtype = kwargs.get("dtype")
        self.layers = [
            CellTransformerLayer(**self._of_layers, seed=seed * 100 + i, name=f"{i}", dtype=dtype)
            for i in range(self.depth)
        ]

    def build(self, input_shape: Any) -> None:
        width = int(tuple(input_shape)[-1])
        self.projection = None
        if self.width is not None:
            initializer = keras.initializers.GlorotUniform(seed=self.seed * 100 + 99)
            self.projection = self.add_weight(
                name="projection", shape=(width, self.width), initializer=initializer
            )
        for layer in self.layers:
            layer.build((None, self.width or width))
        super().build(input_shape)

    def take_directions(self, directions: np.ndarray) -> None:
        """Initializes the projection, so that tokens begin with given combinations of the input.

        Args:
            directions: [n, k] with k at most ``width``, which must not be None.
        """
        take_directions(self.projection, directions)

    def call(self, x: tf.Tensor, context: tf.Tensor | None = None) -> tf.Tensor:
        x, context = self._tokens(x), None if context is None else self._tokens(context)
        for layer in self.layers:
            before = context
            if context is not None and layer is not self.layers[-1]:
                context = layer(context, context=context, itself=False)
            x = layer(x, context=before)
        return x

    def _tokens(self, x: tf.Tensor) -> tf.Tensor:
        x = tf.cast(x, compute_dtype(self))
        return x if self.projection is None else tf.matmul(x, tf.cast(self.projection, x.dtype))

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        shape = tuple(input_shape)
        return (*shape[:-1], self.width or shape[-1])

    def get_config(self) -> dict[str, Any]:
        own = {"depth": self.depth, "width": self.width, "seed": self.seed}
        return {**super().get_config(), **self._of_layers, **own}


def _softmax(scores: tf.Tensor) -> tf.Tensor:
    """Softmax over the last axis; sums in float32 where computing is done in half precision."""
    return tf.cast(tf.nn.softmax(tf.cast(scores, accumulation_dtype(scores.dtype))), scores.dtype)


def _normalize(x: tf.Tensor, gamma: Any, beta: Any) -> tf.Tensor:
    """Layer normalization of every row."""
    wide = tf.cast(x, accumulation_dtype(x.dtype))
    mean, variance = tf.nn.moments(wide, axes=[-1], keepdims=True)
    factor = tf.math.rsqrt(variance + _EPSILON) * tf.cast(gamma, wide.dtype)
    return tf.cast((wide - mean) * factor + tf.cast(beta, wide.dtype), x.dtype)
