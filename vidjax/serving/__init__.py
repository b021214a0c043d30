"""Serves trained models over HTTP: jobs in SQLite, a worker process that makes videos, routes, keys, a page."""
