"""Hooks of training runs; importing ``codmoe.engine`` registers them."""
