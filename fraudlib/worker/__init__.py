"""The scoring door: messages in, scores, alerts and dead letters out."""
