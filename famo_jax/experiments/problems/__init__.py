"""What is learned: tasks, data, networks, losses and metrics. What data need is imported late."""
