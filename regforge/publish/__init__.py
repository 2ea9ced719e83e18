"""Puts finished datasets and trained models on the Hub."""
