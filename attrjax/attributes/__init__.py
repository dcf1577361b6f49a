"""Attribute customization: filters, fusion, partition, training pairs, and the recipe."""
