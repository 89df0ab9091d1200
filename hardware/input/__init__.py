"""Buttons and foot pedals that the kernel shows as input devices."""
