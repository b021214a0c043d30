"""Trains one stage."""
