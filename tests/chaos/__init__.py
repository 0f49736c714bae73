"""Breaking things on purpose: every promise about deaths, full disks and damage, tried."""
