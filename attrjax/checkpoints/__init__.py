"""The diffusers directory layout, in and out, and the small files that people exchange."""
