"""The policy server: models and decoders behind ZeroMQ, and fronts for other protocols."""
