"""contrastive-sc: strong input dropout."""

from concerto_tf.models.contrastive_sc.network import ContrastiveSC

__all__ = ["ContrastiveSC"]
