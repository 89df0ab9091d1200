"""What knows models: networks, decoders and training."""
