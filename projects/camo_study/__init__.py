"""Experts of unlike image scales on CAMO."""
