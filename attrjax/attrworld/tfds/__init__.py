"""The world as a data set of TensorFlow Datasets; building and reading it needs no TensorFlow.

Importing this package registers the builder, and needs the extra ``tfds``. The rest of attrjax does without.
"""

from attrjax.attrworld.tfds.builder import SPLITS, Attrworld, AttrworldConfig

__all__ = ["SPLITS", "Attrworld", "AttrworldConfig"]
