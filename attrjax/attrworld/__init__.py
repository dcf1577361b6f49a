"""A world whose pictures have a known shape and a known appearance, and the models that are trained on it."""
