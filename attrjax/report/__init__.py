"""Picture grids."""
