"""Noise schedules, samplers, guidance and losses; knows no network."""
