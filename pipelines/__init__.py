"""The clock of the project: runs the notebooks, keeps what they showed, and publishes what passed the gate."""
