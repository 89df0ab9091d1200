"""The same samples as a trained policy's, in a fraction of the time."""
