"""Finding image files: folders, globs, lists of paths, and checks of their first bytes."""
