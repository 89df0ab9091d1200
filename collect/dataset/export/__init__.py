"""Exports of recorded episodes into the formats of other projects, one module each."""
