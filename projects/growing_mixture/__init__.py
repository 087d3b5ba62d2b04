"""A mixture that grows by an expert, and one of specialists; see README.md."""
