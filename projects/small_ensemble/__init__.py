"""The small ensemble that ships with the package."""
