"""The study on photographs of five domains and on polyps."""
