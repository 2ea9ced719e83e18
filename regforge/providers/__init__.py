"""Paid models through LiteLLM, text and images: limits, budget, log, and what errors mean."""
