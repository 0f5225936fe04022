"""The embedded Kafka broker, for machines without one."""
