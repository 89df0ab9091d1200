"""The control server: supervisor, arm and camera processes."""
