"""Which files there are: folders walked in a fixed order, globs, lists of paths, and what their first bytes show."""
