"""attrjax: learn one visual attribute, shape or appearance, from one picture, in JAX."""

__version__ = "0.1.0"
