"""Work on recorded episodes: list, check, look at, label, move to the trash, replay."""
