"""Tells people and programs how the processes fare: metrics, health, and the port they stand on."""
