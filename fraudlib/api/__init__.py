"""The HTTP door: requests in, messages on the topic, answers back."""
