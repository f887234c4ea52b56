"""Weights from learner to engines: manifest, channel, receivers, broadcaster, verification."""
