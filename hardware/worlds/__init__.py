"""Simulated worlds behind virtual devices: scenes, the people in them, and their process."""
