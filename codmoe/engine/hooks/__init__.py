"""Hooks of training and test runs; importing this package registers them."""
