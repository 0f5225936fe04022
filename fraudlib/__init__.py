"""Real-time payment-fraud detection on taxi trips, from notebook to production."""

__version__ = "0.1.0"
