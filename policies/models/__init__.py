"""Networks, on torch alone."""
