"""A trained classifier: how it is read, what it sees, its features, its predictions."""
