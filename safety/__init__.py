"""What keeps users apart and the service safe: child processes with limits, queues, the login throttle, the log files."""
