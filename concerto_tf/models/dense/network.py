"""Any augmentation in front of any encoder with any loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

import numpy as np
import tensorflow as tf

from concerto_tf._keras import keras, serializable, state_weight
from concerto_tf.errors import InputError, checked_positive, checked_share
from concerto_tf.layers import SourceBatchNormalization, scatter_to_dense
from concerto_tf.models.base import ContrastiveModel
from concerto_tf.models.batches import first_cells
from concerto_tf.models.dense.mlp import MLP
from concerto_tf.models.placement import READOUT_OFFSET, Placement
from concerto_tf.models.presets import DEFAULT, MOST_EPOCHS, Preset, Training, by_name
from concerto_tf.models.seeds import Seeds
from concerto_tf.models.source_statistics import deviations
from concerto_tf.numerics.alignment import Comparison, align, source_offsets
from concerto_tf.numerics.components import component_directions, standardize_by_source
from concerto_tf.records.batch import Batch, Minibatch

#: Cells whose views say what statistics the layer behind an augmentation will have.
_VIEWS = 4_000
#: A layer, its configuration, or the numbers that a default layer is made from.
LayerLike = Any


@serializable
class DenseModel(ContrastiveModel):
    """An augmentation, an encoder and a loss, which combine freely.

    Cells become dense log-normalized values [B, n_inputs] of the input genes.
    In training each of two views is an augmentation of them; the values are then standardized
    within the cells of their source, and encoded. The loss pulls the two views of a cell together.
    The embedding is what the encoder gives for the whole cell.

    Args:
        vocabulary: Identifiers of all G genes, in the order of the gene indices.
        augmentation: A Keras layer on dense values [B, n_inputs] that changes them in training;
            ``None`` for none, where the encoder itself is random.
        backbone: The encoder: a Keras layer or model [B, n_inputs] -> [B, d], or the widths of an
            `MLP`.
        head: Projection on which the loss is taken, behind a ReLU: the width of a linear layer, or
            a Keras layer [B, d] -> [B, h]; ``None`` takes the loss on the encoder's output.
        standardize: Whether values are standardized by source (`SourceBatchNormalization`).
        input_epsilon: Added to a gene's variance where values are standardized. Large values keep
            quiet genes quiet.
        value_clip: Largest absolute value after standardizing; ``None`` for no limit.
        augment_first: Whether values are augmented before they are standardized, or after.
        scale_inputs: Whether an `MLP` divides its inputs by the root of their number: see there.
        batch_norm, last_relu: As in `MLP`.
        unit_length: Whether embeddings are L2-normalized.
        components: Number of principal components in the PCA initialization of an `MLP`; 0 for
            random weights, as any other encoder has.
        denoise: Share of the noise that is taken out of each component there, 0 to 1
            (`principal_components`).
        align_sources: As in `Concerto`, of standardized values.
        readout_offset: As in `Concerto`.
        **kwargs: Of `ContrastiveModel`: symbols, genes, modality, sources, target_sum, loss,
            temperature, negatives, seed.

    Example:

    A third of the genes masked, in front of an encoder of one's own, with VICReg; trained as
    `Concerto` is:

    >>> import tensorflow as tf
    >>> from concerto_tf.layers import RandomMask
    >>> from concerto_tf.models import DenseModel
    >>> encoder = tf.keras.Sequential(
    ...     [tf.keras.layers.Dense(16, activation="gelu"), tf.keras.layers.Dense(8)]
    ... )
    >>> genes, mask = [f"gene{i}" for i in range(50)], RandomMask(0.3, rescale=False)
    >>> model = DenseModel(genes, augmentation=mask, backbone=encoder, loss="vicreg")
    >>> model.embedding_dim
    8

    Reference:
        Chen et al. 2020 (SimCLR); CLEAR, contrastive-sc and CICL are of this form.
    """

    presets = by_name(Preset(DEFAULT, Training(most_epochs=MOST_EPOCHS)))

    def __init__(
        self,
        vocabulary: Sequence[str],
        *,
        augmentation: LayerLike = None,
        backbone: LayerLike = (128,),
        head: LayerLike = 128,
        standardize: bool = True,
        input_epsilon: float = 0.01,
        value_clip: float | None = 10.0,
        augment_first: bool = True,
        scale_inputs: bool = True,
        batch_norm: bool = False,
        last_relu: bool = False,
        unit_length: bool = False,
        components: int = 50,
        denoise: float = 0.5,
        align_sources: bool = True,
        readout_offset: float = READOUT_OFFSET,
        **kwargs: Any,
    ) -> None:
        super().__init__(vocabulary, **kwargs)
        if components < 0:
            raise InputError(f"components must be 0 or more, not {components}.")
        self.standardize = bool(standardize)
        self.input_epsilon = checked_positive("input_epsilon", input_epsilon)
        self.value_clip = None if value_clip is None else checked_positive("value_clip", value_clip)
        self.augment_first = bool(augment_first)
        self.scale_inputs = bool(scale_inputs)
        self.unit_length = bool(unit_length)
        self._of_mlp = {"batch_norm": bool(batch_norm), "last_relu": bool(last_relu)}
        self.components = int(components)
        self.denoise = checked_share("denoise", denoise)
        self.align_sources = bool(align_sources) and self.standardize and self.components > 0
        self.placement: Placement = Placement(readout_offset, name="placement")
        self._seeds = Seeds(self.seed)
        self.augmentation = None if augmentation is None else _layer(augmentation)
        self.input_norm = None
        if self.standardize:
            self.input_norm = SourceBatchNormalization(
                len(self.sources),
                epsilon=self.input_epsilon,
                aligned=self.align_sources,
                name="input_norm",
            )
        # What makes the default layers again; others are serialized themselves.
        self._plain: dict[str, Any] = {}
        if isinstance(backbone, (list, tuple)):
            self._plain["backbone"] = [int(width) for width in backbone]
            options = {"scale_inputs": self.scale_inputs, **self._of_mlp}
            backbone = MLP(backbone, self._seeds(), **options, name="backbone")
        self.backbone = _layer(backbone)
        if isinstance(head, Integral):
            head = self._plain["head"] = int(head)
            start = keras.initializers.GlorotUniform(seed=self._seeds())
            head = keras.layers.Dense(head, kernel_initializer=start, name="head")
        self.head = None if head is None else _layer(head)
        self.build()

    def build(self, input_shape: Any = None) -> None:
        """Creates all weights: their shapes are known without any data."""
        if self.built:
            return
        #: Mean normalized value of each gene: what a gene that was not measured is taken for.
        self.gene_mean = state_weight(self, "gene_mean", (self.n_inputs,))
        x = tf.zeros([2, self.n_inputs], self.compute_dtype)
        if self.augmentation is not None:
            # Not `build`: only a call builds any layer of any make.
            self.augmentation(x, training=False)
        if self.input_norm is not None:
            self.input_norm.build((None, self.n_inputs))
        x = self.backbone(x, training=False)
        if len(x.shape) != 2:
            raise InputError(f"an encoder gives one embedding per cell, not shape {x.shape}.")
        self._embedding_dim = int(x.shape[-1])
        self.placement.build((None, self._embedding_dim))
        if self.head is not None:
            self.head(x, training=False)
        self.build_more()
        self.built = True

    def build_more(self) -> None:
        """Makes further layers and weights of a subclass, once the encoder has its own."""

    @property
    def embedding_dim(self) -> int:
        return self._embedding_dim

    @property
    def hidden_units(self) -> int:
        """Width of what `represent` gives."""
        return self.embedding_dim

    @property
    def heads(self) -> list[Any]:
        """The projections that only the loss looks at."""
        return [] if self.head is None else [self.head]

    @property
    def n_inputs(self) -> int:
        """Number of input genes."""
        return self.modality_inputs[0].n_inputs

    def untrained(self, sources: Sequence[str], seed: int, **options: Any) -> DenseModel:
        # The small steps of scaled inputs suit a PCA initialization.
        scaled = {} if "scale_inputs" in self.makes else {"scale_inputs": False}
        return super().untrained(sources, seed, **{**scaled, **options})

    # --- from a batch to embeddings ---------------------------------------------------------

    def dense(self, batch: Batch) -> tf.Tensor:
        """Normalized values of all input genes [B, n_inputs], before any change."""
        [genes] = self.modality_inputs
        cells = genes.cells(Minibatch(batch))
        if cells is None:
            raise InputError(f"the cells have no {genes.name}, which the model looks at")
        return scatter_to_dense(cells.genes, cells.values, self.n_inputs, cells.rows)

    def augmented(self, x: tf.Tensor) -> tf.Tensor:
        """A view [B, n_inputs] of dense values [B, n_inputs], for training."""
        return x if self.augmentation is None else self.augmentation(x, training=True)

    def prepare(self, x: tf.Tensor, batch: Batch, training: bool = False) -> tf.Tensor:
        """What the encoder takes in.

        Args:
            x: Dense values [B, n_inputs] of the cells of the batch, or a view of them.
            batch: As `ContrastiveModel` describes.
            training: Whether to standardize by the statistics of the batch.

        Returns:
            Values [B, n_inputs].
        """
        measured = self.modality_inputs[0].measured(Minibatch(batch))
        if measured is not None:
            # Not `input_norm`'s own mean: that is one of views, where genes are hidden.
            x = tf.where(measured, x, tf.cast(self.gene_mean, x.dtype))
        if self.input_norm is None:
            return x
        x = self.input_norm(x, source=Minibatch(batch).source, training=training)
        return (
            x if self.value_clip is None else tf.clip_by_value(x, -self.value_clip, self.value_clip)
        )

    def standardized(self, batch: Batch) -> tf.Tensor:
        """What the encoder takes in [B, n_inputs], for the whole cells of a batch."""
        return self.prepare(self.dense(batch), batch)

    @property
    def deviations(self) -> np.ndarray:
        """What `standardized` values were divided by [n_inputs]; ones where by nothing."""
        one = self.modality_inputs[0]
        return np.ones(one.n_inputs) if self.input_norm is None else deviations(self.input_norm)

    def encode(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Embeddings [B, d] of what `prepare` gives."""
        return self.backbone(x, training=training)

    def project(self, z: tf.Tensor, training: bool = False) -> tf.Tensor:
        """What the loss is taken on [B, h], of embeddings [B, d]."""
        return z if self.head is None else self.head(tf.nn.relu(z), training=training)

    def view_inputs(self, batch: Batch) -> list[tf.Tensor]:
        """Two views [B, n_inputs] of the cells of a batch, as the encoder takes them in."""
        x = self.dense(batch)
        if self.augment_first:
            return [self.prepare(self.augmented(x), batch, training=True) for _ in range(2)]
        x = self.prepare(x, batch, training=True)
        return [self.augmented(x) for _ in range(2)]

    def views(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        a, b = (
            self.project(self.encode(x, training=True), training=True)
            for x in self.view_inputs(batch)
        )
        return a, b

    def represent(self, batch: Batch, training: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
        """Embeddings [B, d] of two views in training, otherwise twice those of the whole cells.

        Without the offset of the embedding.
        """
        if not training:
            z = self.read_out(batch)
            return z, z
        a, b = (self.encode(x, training=True) for x in self.view_inputs(batch))
        return a, b

    def call(self, batch: Batch, training: bool | None = None) -> tf.Tensor:
        z = self.placement(self.read_out(batch))
        return tf.math.l2_normalize(z, axis=-1) if self.unit_length else z

    def read_out(self, batch: Batch) -> tf.Tensor:
        """What the encoder makes of the whole cells of a batch [B, d]."""
        return self.encode(self.standardized(batch))

    # --- PCA initialization -----------------------------------------------------------------

    def initialize(self, data: Iterable[Batch]) -> None:
        """PCA initialization: an `MLP` begins with the components of a sample of cells.

        Training then refines what PCA sees, for which small data would not suffice from random
        weights. No label is looked at.

        Args:
            data: Batches of cells in random order; as many are looked at as fit into 400 MB,
                50,000 at most.
        """
        super().initialize(data)
        xs, source = first_cells(lambda batch: [self.dense(batch)], data, self.n_inputs)
        if len(source):
            self.gene_mean.assign(xs[0].mean(0))
            self.begin(self.standardized_sample(xs[0], source))

    @property
    def pca_initialized(self) -> bool:
        """Whether training begins with a PCA initialization."""
        return bool(self.components) and isinstance(self.backbone, MLP)

    @property
    def recipe(self) -> Training:
        recipe = super().recipe
        return recipe if self.pca_initialized else replace(recipe, most_epochs=None)

    def begin(self, x: np.ndarray) -> None:
        """Sets the weights that a training begins with.

        Args:
            x: What the encoder takes in, of a sample of cells [n, n_inputs], float32.
        """
        if self.pca_initialized and len(x) > 2:
            paired = self.head is not None  # behind a ReLU
            most = min(self.components, self.backbone.room(paired))
            directions, spread = component_directions(x, most, self.seed, self.denoise)
            if not directions.shape[1]:
                return
            held = self.backbone.take_directions(directions, paired)
            self.placement.place(held, np.tile(spread, 2)[:, :held])

    def standardized_sample(self, x: np.ndarray, source: np.ndarray) -> np.ndarray:
        """What the encoder takes in [n, n_inputs] of a sample, by its own statistics.

        Sources are aligned by the sample where they are to be.
        """
        if self.input_norm is None:
            return x
        offsets = None
        if self.align_sources:
            by = Comparison(self.input_epsilon, self.value_clip, self.components, self.seed)
            offsets = source_offsets(x, source, len(self.sources), by)
        if offsets is None:
            x, _ = standardize_by_source(x, source, self.input_epsilon)
        else:
            views = None
            if self.augment_first and self.augmentation is not None:
                views = tf.cast(self.augmented(tf.constant(x[:_VIEWS])), tf.float32).numpy()
            x, _, factor, offset = align(x, source, offsets, self.input_epsilon, views)
            self.input_norm.align(factor, offset)
        return x if self.value_clip is None else np.clip(x, -self.value_clip, self.value_clip)

    def get_config(self) -> dict[str, Any]:
        config = {
            **super().get_config(),
            "augmentation": _config(self.augmentation),
            "backbone": self._plain.get("backbone") or _config(self.backbone),
            "head": self._plain.get("head") or _config(self.head),
            "standardize": self.standardize,
            "input_epsilon": self.input_epsilon,
            "value_clip": self.value_clip,
            "augment_first": self.augment_first,
            "scale_inputs": self.scale_inputs,
            **self._of_mlp,
            "unit_length": self.unit_length,
            "components": self.components,
            "denoise": self.denoise,
            "align_sources": self.align_sources,
            "readout_offset": self.placement.offset,
        }
        return {key: value for key, value in config.items() if key not in self.makes}


def refuse_made(cls: type[DenseModel], given: Mapping[str, Any]) -> None:
    """Raises InputError if a method is given what it makes by itself."""
    for name in sorted(cls.makes & set(given)):
        raise InputError(f"{cls.__name__} has a {name} of its own; combine others in a DenseModel")


def _layer(spec: Any) -> Any:
    """A layer of a layer or its configuration."""
    if isinstance(spec, dict):
        return keras.layers.deserialize(spec)
    if not isinstance(spec, keras.layers.Layer):
        raise InputError(f"expected a Keras layer, not {spec!r}.")
    return spec


def _config(layer: Any) -> Any:
    """What a layer is made again from; see `_layer`."""
    return None if layer is None else keras.layers.serialize(layer)
