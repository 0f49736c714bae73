"""Jobs: training, scoring and scheduling, and the commands that start them."""
