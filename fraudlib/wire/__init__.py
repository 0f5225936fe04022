"""What goes over the topics: records, messages, delivery."""
