"""Exports of a trained model for other programs, each compared with the model."""
