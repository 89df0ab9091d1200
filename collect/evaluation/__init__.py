"""Evaluation: policies in simulated worlds over many seeds, and blind comparisons on a station."""
