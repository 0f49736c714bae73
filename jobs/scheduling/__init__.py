"""When jobs run: cron expressions, what a scheduler says, and the files of other schedulers."""
