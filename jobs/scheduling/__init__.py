"""Scheduling: cron expressions, the scheduler, and configuration files for other schedulers."""
