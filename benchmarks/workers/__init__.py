"""Processes that measure one contender each, on request."""
