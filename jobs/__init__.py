"""What is run: training, scoring and their reports, and the commands that start them."""
