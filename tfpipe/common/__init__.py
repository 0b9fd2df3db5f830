"""Shared helpers: files, locks, errors, argument checks, tables, progress, worker processes."""
