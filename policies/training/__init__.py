"""From recorded episodes to a checkpoint."""
